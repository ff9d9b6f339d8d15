//! `microvm logs`: the console of a VM, or the kept output of a process.

use std::time::Duration;

use clap::Args;
use microvm_api::output::{Collected, Outputs};
use microvm_types::exec::{ExitStatus, OutputOffsets};
use microvm_types::{ProcessId, VmRef};
use serde::Serialize;

use crate::context::Context;
use crate::error::CliError;
use crate::interrupts::Interrupts;
use crate::notice::say;
use crate::session;

/// Bytes of a console that are asked for at once.
const PART: usize = 1 << 20;

/// Interval between reads of a followed console, which has no event to wait for.
const INTERVAL: Duration = Duration::from_millis(500);

/// Show the console of a VM, or the kept output of a process
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  microvm logs dev --console               what the kernel and the agent wrote
  microvm logs dev --console --follow
  microvm logs dev PROCESS                 the kept output of a process
  microvm logs dev PROCESS --follow        its kept and new output, until it ends

Looking disturbs nobody: whoever runs the process, or is attached to it, goes on. At most the last MiB of each
output is kept, and one to two MiB of a console; what is missing is said on standard error, and
in JSON.")]
pub(crate) struct Logs {
    /// Name or id of the VM
    vm: VmRef,
    /// Process id, as `ps` shows it [default: the console]
    #[arg(conflicts_with = "console")]
    process: Option<ProcessId>,
    /// Show the console
    #[arg(long)]
    console: bool,
    /// Follow new output
    #[arg(short, long)]
    follow: bool,
}

/// Reason for missing bytes of an output, for people.
const GONE: &str = "they are not kept any more";

/// The output of `--output json` for a process.
#[derive(Serialize)]
struct Kept<'a> {
    process: &'a ProcessId,
    /// Absent while it runs.
    exit: Option<ExitStatus>,
    #[serde(flatten)]
    outputs: Outputs,
}

/// The output of `--output json` for a console.
#[derive(Serialize)]
struct KeptConsole {
    console: String,
    /// Only where it is no UTF-8.
    #[serde(skip_serializing_if = "Option::is_none")]
    console_base64: Option<String>,
    /// Bytes before it that are not kept any more.
    omitted_bytes: u64,
}

impl Logs {
    pub(crate) async fn run(self, context: &Context) -> Result<u8, CliError> {
        if self.follow && context.output.is_json() {
            let detail = "--follow has no JSON: it prints what comes, as it comes; leave out --output json or --follow";
            return Err(CliError::invalid("follow_is_text", detail));
        }
        let mut interrupts = Interrupts::new()?;
        let Some(process) = &self.process else {
            return self.console(context, &mut interrupts).await;
        };
        let from = OutputOffsets::default();
        let session = context.client.read_output(&self.vm, process, from, self.follow).await?;
        let shown = session::show(session, context.output.is_json());
        match interrupts.unless(shown).await {
            // Whoever stops watching has not failed, and the process goes on.
            Err(CliError::Interrupted(_)) if self.follow => Ok(0),
            Err(error) => Err(error),
            Ok((exit, all)) => {
                if context.output.is_json() {
                    context.output.json(&Kept { process, exit, outputs: session::outputs(all, GONE) })?;
                }
                Ok(0)
            }
        }
    }

    async fn console(&self, context: &Context, interrupts: &mut Interrupts) -> Result<u8, CliError> {
        let (mut next, mut all) = (0, Collected::default());
        loop {
            let asking = async { Ok(context.client.console(&self.vm, next, PART).await?) };
            let part = match interrupts.unless(asking).await {
                Err(CliError::Interrupted(_)) if self.follow => return Ok(0),
                part => part?,
            };
            // The server begins with the oldest byte that is kept if the one asked for is gone.
            let gone = part.offset.saturating_sub(next);
            if context.output.is_json() {
                all.miss(gone);
                all.add(&part.bytes);
            } else {
                if gone > 0 {
                    say(&format!("{gone} bytes of the console are left out: {GONE}"));
                }
                context.output.guest_bytes(&part.bytes)?;
            }
            next = part.offset + part.bytes.len() as u64;
            if next < part.end {
                continue;
            }
            if !self.follow {
                break;
            }
            let wait = async {
                tokio::time::sleep(INTERVAL).await;
                Ok(())
            };
            if interrupts.unless(wait).await.is_err() {
                return Ok(0);
            }
        }
        if context.output.is_json() {
            let Outputs { stdout, stdout_base64, omitted, .. } =
                Outputs::new(all, Collected::default(), GONE);
            context.output.json(&KeptConsole {
                console: stdout,
                console_base64: stdout_base64,
                omitted_bytes: omitted.map_or(0, |omitted| omitted.stdout_bytes),
            })?;
        }
        Ok(0)
    }
}
