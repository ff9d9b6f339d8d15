//! `microvm ps`: processes of a VM.

use clap::Args;
use microvm_types::{ByteSize, VmRef};

use crate::context::Context;
use crate::error::CliError;

/// List the processes of a VM
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  microvm ps dev             commands started by `exec`, with the ids to attach to
  microvm ps dev --all       every process of the guest")]
pub(crate) struct Ps {
    /// Name or id of the VM
    vm: VmRef,
    /// Every process of the guest, not only those started by `exec`
    #[arg(short, long)]
    all: bool,
}

impl Ps {
    pub(crate) async fn run(self, context: &Context) -> Result<u8, CliError> {
        if self.all {
            let list = context.client.guest_processes(&self.vm).await?;
            let rows: Vec<Vec<String>> = list
                .processes
                .iter()
                .map(|process| {
                    vec![
                        process.pid.to_string(),
                        process.parent.to_string(),
                        process.uid.to_string(),
                        process.state.to_string(),
                        ByteSize(process.resident_bytes).to_string(),
                        milliseconds(process.cpu_ms),
                        shortened(process.command.clone(), process.command_omitted),
                    ]
                })
                .collect();
            context.output.table(
                &list,
                &["PID", "PARENT", "UID", "STATE", "MEMORY", "CPU", "COMMAND"],
                rows,
            )?;
            return Ok(0);
        }
        let list = context.client.processes(&self.vm).await?;
        let rows: Vec<Vec<String>> = list
            .processes
            .iter()
            .map(|process| {
                let state = match process.exit {
                    None => "running".to_owned(),
                    Some(exit) => format!("ended ({})", exit.shell_code()),
                };
                vec![
                    process.id.to_string(),
                    process.pid.to_string(),
                    state,
                    milliseconds(process.age_ms),
                    shortened(process.command.join(" "), process.command_omitted),
                ]
            })
            .collect();
        context.output.table(&list, &["PROCESS", "PID", "STATE", "AGE", "COMMAND"], rows)?;
        Ok(0)
    }
}

fn milliseconds(time: u64) -> String {
    format!("{}.{}s", time / 1000, time % 1000 / 100)
}

/// A command, and how much of it is left out.
/// A command line, with what is left out of it.
pub(crate) fn shortened(command: String, omitted: u64) -> String {
    if omitted == 0 { command } else { format!("{command} … ({omitted} more bytes)") }
}
