//! Names each step, tells its time, and shows that a long one is still alive.

use std::io::IsTerminal;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::Result;

/// How often a step without a terminal says that it is still at work.
const SIGN_OF_LIFE: Duration = Duration::from_secs(30);

/// Runs one step.
pub(crate) fn step<T>(name: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    eprintln!("▸ {name} …");
    let begun = Instant::now();
    let outcome = std::thread::scope(|scope| {
        let (done, wait) = mpsc::channel::<()>();
        // On a terminal the tools show their own progress; a second voice would tear it.
        if !std::io::stderr().is_terminal() {
            scope.spawn(move || {
                while wait.recv_timeout(SIGN_OF_LIFE) == Err(mpsc::RecvTimeoutError::Timeout) {
                    eprintln!("  … {name}: {:.0} s", begun.elapsed().as_secs_f64());
                }
            });
        }
        let outcome = work();
        drop(done);
        outcome
    });
    let mark = if outcome.is_ok() { "✓" } else { "✗" };
    eprintln!("{mark} {name}  {:.1} s", begun.elapsed().as_secs_f64());
    outcome
}
