//! `microvm inspect`: everything about a VM.

use clap::Args;
use microvm_api::Vm;
use microvm_api::guest::StartCommand;
use microvm_client::ClientError;
use microvm_types::VmRef;
use serde::Serialize;

use crate::context::Context;
use crate::error::CliError;

/// The output.
#[derive(Serialize)]
struct Shown {
    #[serde(flatten)]
    vm: Vm,
    /// Start commands that ran, with the ends of the outputs of one that failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    start_commands: Option<Vec<StartCommand>>,
    /// Why they are not told.
    #[serde(skip_serializing_if = "Option::is_none")]
    start_commands_problem: Option<String>,
}

/// Show everything about a VM
#[derive(Debug, Args)]
#[command(
    after_help = "Prints JSON. Of a start command that failed it has exit code and end of output, or why it could not be started, while the VM runs.\n\nExample:\n  microvm inspect dev"
)]
pub(crate) struct Inspect {
    /// Name or id of the VM
    vm: VmRef,
}

impl Inspect {
    pub(crate) async fn run(self, context: &Context) -> Result<u8, CliError> {
        let vm = context.client.vm(&self.vm).await?;
        let mut shown = Shown { start_commands: None, start_commands_problem: None, vm };
        if shown.vm.reachable {
            // By its id: another VM may have the name by now.
            match context.client.start_commands(&VmRef::from(shown.vm.id.clone())).await {
                Ok(told) if told.commands.is_empty() => {}
                Ok(told) => shown.start_commands = Some(told.commands),
                // A server of an older version does not tell them.
                Err(ClientError::Problem(problem)) if problem.code == "route_not_found" => {}
                // All else about the VM is worth showing.
                Err(error) => shown.start_commands_problem = Some(CliError::from(error).detail()),
            }
        }
        // There is nothing to line up in columns: both formats are JSON.
        context.output.json(&shown)?;
        Ok(0)
    }
}
