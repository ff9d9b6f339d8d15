//! Long work: a bar on a terminal, one line per step otherwise.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use microvm_api::progress::ProgressLine;
use microvm_client::Lines;
use microvm_types::ErrorKind;

use crate::error::CliError;
use crate::notice::{people_read, say};
use crate::visible;

/// Shows progress until the outcome comes, which is returned.
pub(crate) async fn follow(mut lines: Lines<ProgressLine>) -> Result<ProgressLine, CliError> {
    let mut display = Display::new();
    while let Some(line) = lines.next().await? {
        match line {
            ProgressLine::Progress { step, done, total } => display.show(&step, done, total),
            ProgressLine::Failed { problem } => return Err(problem.into()),
            outcome => return Ok(outcome),
        }
    }
    Err(CliError::new(
        ErrorKind::Unavailable,
        "connection_lost",
        "the server ended the work without saying how it went: look at its log and try again",
    ))
}

/// Time after which people are told what is waited for.
const PATIENCE: Duration = Duration::from_secs(1);

/// Does `work`, and shows on a terminal what is waited for if it takes longer than a second.
pub(crate) async fn while_waiting<T>(text: &str, quiet: bool, work: impl Future<Output = T>) -> T {
    if quiet || !people_read() {
        return work.await;
    }
    let mut work = std::pin::pin!(work);
    tokio::select! {
        outcome = &mut work => return outcome,
        // Most work is done by then, and nothing flashes up.
        () = tokio::time::sleep(PATIENCE) => {}
    }
    let mut display = Display::new();
    display.show(text, 0, None);
    work.await
}

/// The server's answer is of another kind than the operation's.
pub(crate) fn unexpected() -> CliError {
    let detail = "the server's last word was not the one expected: client and server are probably of different versions";
    CliError::new(ErrorKind::Internal, "answer_not_understood", detail)
}

/// A bar, or lines.
pub(crate) struct Display {
    bar: Option<ProgressBar>,
    step: String,
}

impl Display {
    pub(crate) fn new() -> Self {
        let bar = people_read().then(|| {
            let bar = ProgressBar::new_spinner();
            bar.enable_steady_tick(Duration::from_millis(120));
            bar
        });
        Self { bar, step: String::new() }
    }

    pub(crate) fn show(&mut self, step: &str, done: u64, total: Option<u64>) {
        let is_new = self.step != step;
        if is_new {
            step.clone_into(&mut self.step);
        }
        match &self.bar {
            None if is_new => say(step),
            None => {}
            Some(bar) => {
                if let Some(total) = total {
                    bar.set_length(total);
                    if is_new
                        && let Ok(style) =
                            ProgressStyle::with_template("{spinner} {msg} [{bar:30}] {percent}% {eta}")
                    {
                        bar.set_style(style);
                    }
                } else if is_new {
                    bar.set_style(ProgressStyle::default_spinner());
                }
                bar.set_position(done);
                bar.set_message(visible::line(step));
            }
        }
    }
}

impl Drop for Display {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
