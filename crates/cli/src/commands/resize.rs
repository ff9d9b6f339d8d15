//! `microvm resize`: the memory of a running VM.

use clap::Args;
use microvm_api::vm::ResizeVm;
use microvm_types::VmRef;

use crate::commands::machine::whole_mib;
use crate::context::Context;
use crate::error::CliError;

/// Change the memory of a running VM
#[derive(Debug, Args)]
#[command(after_help = "\
The guest returns memory to the host, or takes it back, up to `memory_max_mib` of the VM: what `create --memory-max` gave it, else \
the memory that it was created with, and down to a 16th of that, at least 64 MiB.

Examples:
  microvm resize dev --memory 256MiB
  microvm create --name big --memory 512MiB --memory-max 2GiB && microvm resize big --memory 2GiB")]
pub(crate) struct Resize {
    /// Name or id of the VM
    vm: VmRef,
    /// New size
    #[arg(long, value_name = "SIZE", value_parser = whole_mib, required_unless_present = "cpus")]
    memory: Option<u32>,
    /// New number of processors; refused unless it is what the VM has, because no hypervisor here can change it
    #[arg(long, value_name = "COUNT")]
    cpus: Option<u32>,
}

impl Resize {
    pub(crate) async fn run(self, context: &Context) -> Result<u8, CliError> {
        let size = ResizeVm { memory_mib: self.memory, vcpus: self.cpus };
        let vm = context.client.resize_vm(&self.vm, &size).await?;
        context.output.value(&vm, vm.name.as_str())?;
        Ok(0)
    }
}
