//! `microvm inspect`: everything about a VM.

use clap::Args;
use microvm_types::VmRef;

use crate::context::Context;
use crate::error::CliError;

/// Show everything about a VM
#[derive(Debug, Args)]
#[command(after_help = "Prints JSON.\n\nExample:\n  microvm inspect dev")]
pub(crate) struct Inspect {
    /// Name or id of the VM
    vm: VmRef,
}

impl Inspect {
    pub(crate) async fn run(self, context: &Context) -> Result<u8, CliError> {
        let vm = context.client.vm(&self.vm).await?;
        // There is nothing to line up in columns: both formats are JSON.
        context.output.json(&vm)?;
        Ok(0)
    }
}
