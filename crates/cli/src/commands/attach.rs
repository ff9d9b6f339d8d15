//! `microvm attach`: the streams of a process that runs already.

use std::io::IsTerminal as _;

use clap::Args;
use microvm_types::exec::{OutputOffsets, ProcessInfo};
use microvm_types::{ErrorKind, ProcessId, VmRef};

use crate::commands::exec::{Whose, to_its_end};
use crate::context::Context;
use crate::detach::{DEFAULT_KEYS, DetachKeys};
use crate::error::CliError;
use crate::interrupts::Interrupts;
use crate::session::Wiring;

/// Attach to a process of a VM
#[derive(Debug, Args)]
#[command(after_help = "\
Shows the output that is kept of the process and goes on with what it writes; standard input goes to it. A process
with a terminal gets this one. The detach keys end the attachment and leave the process running. Another reader of
the process is detached.

Examples:
  microvm exec -dit dev -- bash            prints the id of the process
  microvm attach dev PROCESS
  microvm attach dev                       if only one process runs

Exit code: that of the process; 0 after the detach keys; 125 for errors of microvm.")]
pub(crate) struct Attach {
    /// Name or id of the VM
    vm: VmRef,
    /// Id of the process, as `ps` shows it [default: the only one that runs]
    process: Option<ProcessId>,
    /// Do not forward standard input
    #[arg(long)]
    no_stdin: bool,
    /// Keys that detach from a terminal
    #[arg(long, value_name = "KEYS", default_value = DEFAULT_KEYS)]
    detach_keys: DetachKeys,
}

impl Attach {
    pub(crate) async fn run(self, context: &Context) -> Result<u8, CliError> {
        let mut interrupts = Interrupts::new()?;
        let client = &context.client;
        let processes = client.processes(&self.vm).await?.processes;
        let process = match &self.process {
            Some(id) => processes.into_iter().find(|process| process.id == *id).ok_or_else(|| {
                let detail = format!("no process {id} is known in {}: `microvm ps {0}` lists them", self.vm);
                CliError::new(ErrorKind::NotFound, "process_not_found", detail)
            })?,
            None => only_running(&self.vm, processes)?,
        };
        let stdin = !self.no_stdin;
        let wiring = Wiring {
            // A command that was started without standard input has none to be ended.
            stdin: stdin && process.stdin,
            terminal: process.terminal
                && stdin
                && std::io::stdin().is_terminal()
                && !context.output.is_json(),
            collect: context.output.is_json(),
            detach_keys: Some(self.detach_keys),
        };
        let attached = client.attach(&self.vm, &process.id, OutputOffsets::default()).await?;
        to_its_end(context, &self.vm, attached, wiring, &mut interrupts, Whose::Others).await
    }
}

fn only_running(vm: &VmRef, mut processes: Vec<ProcessInfo>) -> Result<ProcessInfo, CliError> {
    processes.retain(|process| process.exit.is_none());
    if processes.len() > 1 {
        let named = |process: &ProcessInfo| format!("{} ({})", process.id, process.command.join(" "));
        let named: Vec<String> = processes.iter().take(5).map(named).collect();
        let detail = format!("several processes run in {vm}, name one of them: {}", named.join(", "));
        return Err(CliError::invalid("process_ambiguous", detail));
    }
    processes.pop().ok_or_else(|| {
        let detail = format!(
            "no process that `exec` started runs in {vm}: `microvm exec -dit {vm} -- COMMAND` starts one"
        );
        CliError::new(ErrorKind::NotFound, "process_not_found", detail)
    })
}
