//! `microvm resize`: the memory of a running VM.

use clap::Args;
use microvm_types::VmRef;

use crate::commands::machine::whole_mib;
use crate::context::Context;
use crate::error::CliError;

/// Change the memory of a running VM
#[derive(Debug, Args)]
#[command(after_help = "\
The guest returns memory to the host, or takes it back up to the size that the VM was created with.

Example:
  microvm resize dev --memory 256MiB")]
pub(crate) struct Resize {
    /// Name or id of the VM
    vm: VmRef,
    /// New size
    #[arg(long, value_name = "SIZE", value_parser = whole_mib)]
    memory: u32,
}

impl Resize {
    pub(crate) async fn run(self, context: &Context) -> Result<u8, CliError> {
        let vm = context.client.resize_vm(&self.vm, self.memory).await?;
        context.output.value(&vm, vm.name.as_str())?;
        Ok(0)
    }
}
