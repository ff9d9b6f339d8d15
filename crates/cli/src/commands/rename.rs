//! `microvm rename`: another name for a VM.

use clap::Args;
use microvm_types::{Name, VmRef};

use crate::context::Context;
use crate::error::CliError;

/// Rename a VM
#[derive(Debug, Args)]
#[command(after_help = "\
In any state. The guest has the new host name after its next start. Prints the new name.

Example:
  microvm rename dev staging")]
pub(crate) struct Rename {
    /// Name or id of the VM
    vm: VmRef,
    /// New name
    name: Name,
}

impl Rename {
    pub(crate) async fn run(self, context: &Context) -> Result<u8, CliError> {
        let vm = context.client.rename_vm(&self.vm, self.name).await?;
        context.output.value(&vm, vm.name.as_str())?;
        Ok(0)
    }
}
