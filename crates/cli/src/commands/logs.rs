//! `microvm logs`: the console of a VM, or the kept output of a process.

use std::time::Duration;

use clap::Args;
use microvm_types::exec::OutputOffsets;
use microvm_types::{ProcessId, VmRef};

use crate::context::Context;
use crate::error::CliError;
use crate::interrupts::Interrupts;
use crate::session;

/// Most of a console that is shown, in bytes.
const CONSOLE: usize = 1 << 20;

/// How often a console is looked at again; a console has no event to wait for.
const INTERVAL: Duration = Duration::from_millis(500);

/// Show the console of a VM, or the kept output of a process
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  microvm logs dev --console               what the kernel and the agent wrote
  microvm logs dev --console --follow
  microvm logs dev PROCESS                 what is kept of the output of a process
  microvm logs dev PROCESS --follow        the same, and what comes, to its end

Looking disturbs nobody: whoever runs the process, or is attached to it, goes on. At most the last MiB of each
output is kept; what is missing is said on standard error.")]
pub(crate) struct Logs {
    /// Name or id of the VM
    vm: VmRef,
    /// A process, as `ps` shows it; without one the console is shown
    #[arg(conflicts_with = "console")]
    process: Option<ProcessId>,
    /// The console of the machine
    #[arg(long)]
    console: bool,
    /// Go on showing what comes
    #[arg(short, long)]
    follow: bool,
}

impl Logs {
    pub(crate) async fn run(self, context: &Context) -> Result<u8, CliError> {
        let mut interrupts = Interrupts::new()?;
        let Some(process) = &self.process else {
            return self.console(context, &mut interrupts).await;
        };
        let from = OutputOffsets::default();
        let session = context.client.read_output(&self.vm, process, from, self.follow).await?;
        let shown = session::show(session);
        match interrupts.unless(shown).await {
            // Whoever stops watching has not failed, and the process goes on.
            Err(CliError::Interrupted(_)) => Ok(0),
            other => other.map(|_| 0),
        }
    }

    async fn console(&self, context: &Context, interrupts: &mut Interrupts) -> Result<u8, CliError> {
        let mut before = context.client.console(&self.vm, CONSOLE).await?;
        context.output.guest_bytes(&before)?;
        if !self.follow {
            return Ok(0);
        }
        loop {
            let wait = async {
                tokio::time::sleep(INTERVAL).await;
                Ok(())
            };
            if interrupts.unless(wait).await.is_err() {
                return Ok(0);
            }
            let now = context.client.console(&self.vm, CONSOLE).await?;
            context.output.guest_bytes(&now[news(&before, &now)..])?;
            before = now;
        }
    }
}

/// Where in `now` the bytes begin that `before` did not show. Both are the end of the same growing text.
fn news(before: &[u8], now: &[u8]) -> usize {
    if now.starts_with(before) {
        return before.len();
    }
    // The beginning was cut off: find the last bytes shown.
    let tail = &before[before.len().saturating_sub(256)..];
    let found = now.windows(tail.len().max(1)).rposition(|window| window == tail);
    found.map_or(0, |start| start + tail.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_new_is_shown() {
        assert_eq!(news(b"", b"abc"), 0);
        assert_eq!(news(b"abc", b"abcd"), 3);
        assert_eq!(news(b"abc", b"abc"), 3);
        let before: Vec<u8> = (0..=255).cycle().take(1000).chain(*b"end").collect();
        let now = [&before[500..], b"more"].concat();
        assert_eq!(&now[news(&before, &now)..], b"more");
        assert_eq!(news(b"old", b"entirely different"), 0);
    }
}
