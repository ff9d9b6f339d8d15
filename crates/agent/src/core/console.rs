//! Lines on the machine's console: the only output of a guest without a channel.

use std::io::Write as _;

/// Writes one line. A failure is ignored: there is no other place to report it.
pub(crate) fn say(text: &str) {
    let line = format!("microvm-agent: {text}\n");
    let _ = std::io::stderr().lock().write_all(line.as_bytes());
}

/// Prints a panic as one line. The process aborts after it; the end of PID 1 is a kernel panic, which the host sees.
pub(crate) fn announce_panics() {
    std::panic::set_hook(Box::new(|panic| say(&format!("panic: {panic}"))));
}
