//! Lines on the machine's console, the only place where a guest without a channel can be heard.

use std::io::Write as _;

/// Writes one line. A console that cannot be written to is nobody's fault here.
pub(crate) fn say(text: &str) {
    let line = format!("microvm-agent: {text}\n");
    let _ = std::io::stderr().lock().write_all(line.as_bytes());
}

/// Makes a panic visible as one clear line; the process aborts after it and, as PID 1, takes the kernel with it.
pub(crate) fn announce_panics() {
    std::panic::set_hook(Box::new(|panic| say(&format!("panic: {panic}"))));
}
