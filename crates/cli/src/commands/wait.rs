//! `microvm wait`: until a VM is in a state, or a process has ended.

use std::time::{Duration, Instant};

use clap::Args;
use microvm_api::queries::WaitForVm;
use microvm_api::query::FilterState;
use microvm_api::vm::Event;
use microvm_client::ClientError;
use microvm_types::exec::{ExitStatus, OutputOffsets};
use microvm_types::{ErrorKind, Phase, ProcessId, VmRef};
use serde_json::json;

use crate::commands::ls::state;
use crate::context::Context;
use crate::duration;
use crate::error::CliError;
use crate::interrupts::Interrupts;

/// Longest wait of one request, in seconds; a longer one is asked for again.
const ONE_REQUEST: u64 = 3_000;
/// Word for a VM that was deleted, where states are named.
const DELETED: &str = "deleted";

/// A state, or the deletion.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Target {
    State(Phase),
    Deleted,
}

fn target(text: &str) -> Result<Target, String> {
    if text == DELETED {
        return Ok(Target::Deleted);
    }
    state(text).map(Target::State).map_err(|known| format!("{known}, {DELETED}"))
}

/// Wait for a state of a VM, or for the end of a process
#[derive(Debug, Args)]
#[command(after_help = "\
Prints the state that the VM is in then, or the exit code of the process. Without --state the end of the VM is
waited for: stopped, failed or deleted. A VM that fails or is deleted while something else is waited for is an error.

Examples:
  microvm wait dev
  microvm wait dev --state running --timeout 30s
  microvm wait dev PROCESS                 the exit code of a process that `exec -d` started

Exit code: 0 when what was waited for has come, 107 if the time passed, 102 if the VM does not exist or was deleted.")]
pub(crate) struct Wait {
    /// Name or id of the VM
    vm: VmRef,
    /// Id of a process, as `ps` shows it
    #[arg(conflicts_with = "states")]
    process: Option<ProcessId>,
    /// State to wait for, or `deleted`; may be given several times
    #[arg(long = "state", value_name = "STATE", value_parser = target)]
    states: Vec<Target>,
    /// Give up after this time
    #[arg(short, long, value_name = "TIME", value_parser = duration::parse)]
    timeout: Option<Duration>,
}

impl Wait {
    pub(crate) async fn run(self, context: &Context) -> Result<u8, CliError> {
        let mut interrupts = Interrupts::new()?;
        let Some(process) = &self.process else {
            let event = interrupts.unless(self.for_state(context)).await?;
            let state = if event.gone { DELETED } else { event.state.as_str() };
            context.output.value(&event, state)?;
            return Ok(0);
        };
        let ended = async {
            match self.timeout {
                Some(timeout) => {
                    match tokio::time::timeout(timeout, self.for_process(context, process)).await {
                        Ok(ended) => ended,
                        Err(_) => {
                            let detail = format!("the process {process} still runs after {timeout:?}");
                            Err(CliError::new(ErrorKind::Timeout, "wait_timeout", detail))
                        }
                    }
                }
                None => self.for_process(context, process).await,
            }
        };
        let exit = interrupts.unless(ended).await?;
        let code = exit.shell_code();
        context
            .output
            .value(&json!({ "process": process, "exit_code": code, "exit": exit }), &code.to_string())?;
        Ok(0)
    }

    async fn for_state(&self, context: &Context) -> Result<Event, CliError> {
        let deadline = self.timeout.map(|timeout| Instant::now() + timeout);
        let state = |target: &Target| match target {
            Target::State(phase) => Some(FilterState::from(*phase)),
            Target::Deleted => None,
        };
        loop {
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            // Rounded up, so that the server's wait does not end before ours and is asked for once more.
            let seconds = left
                .map_or(ONE_REQUEST, |left| left.as_millis().div_ceil(1000).try_into().unwrap_or(u64::MAX));
            let query = WaitForVm {
                state: self.states.iter().filter_map(state).collect(),
                gone: self.states.contains(&Target::Deleted),
                timeout_seconds: seconds.clamp(1, ONE_REQUEST),
            };
            match context.client.wait_for_vm(&self.vm, &query).await {
                Err(ClientError::Problem(problem))
                    if problem.code == "wait_timeout"
                        && deadline.is_none_or(|deadline| deadline > Instant::now()) => {}
                answer => return Ok(answer?),
            }
        }
    }

    async fn for_process(&self, context: &Context, process: &ProcessId) -> Result<ExitStatus, CliError> {
        let from = OutputOffsets::default();
        let mut session = context.client.read_output(&self.vm, process, from, true).await?;
        Ok(session.events.status().await?)
    }
}
