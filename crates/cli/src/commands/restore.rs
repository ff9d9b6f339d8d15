//! `microvm restore` and `microvm rollback`: back to a snapshot.

use clap::Args;
use microvm_api::snapshot::RestoreSnapshot;
use microvm_types::VmRef;

use crate::context::Context;
use crate::error::CliError;
use crate::format::number;
use crate::interrupts::Interrupts;
use crate::pairs::pair;

/// Create VMs from a snapshot; they continue where it was taken
#[derive(Debug, Args)]
#[command(after_help = concat!("\
Each has an identity of its own: name, host name, machine id, random numbers. Prints the names.

Examples:
  microvm restore ready
  microvm restore ready --name copy
  microvm restore ready --count 3 --name try-", number!()))]
pub(crate) struct Restore {
    /// Name or id of the snapshot
    snapshot: String,
    #[arg(long, help = concat!("Name of the new VM; with --count, ", number!(), " stands for the number"))]
    name: Option<String>,
    /// Number of VMs
    #[arg(long, default_value_t = 1)]
    count: usize,
    /// Label of the new VMs
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = pair)]
    labels: Vec<(String, String)>,
}

impl Restore {
    pub(crate) async fn run(self, context: &Context) -> Result<u8, CliError> {
        let request = RestoreSnapshot {
            in_place: false,
            count: self.count,
            name: self.name,
            labels: self.labels.into_iter().collect(),
            ..RestoreSnapshot::default()
        };
        let mut interrupts = Interrupts::new()?;
        let restoring = async { Ok(context.client.restore(&self.snapshot, &request).await?) };
        let restored = interrupts.unless(restoring).await?;
        let names: Vec<&str> = restored.vms.iter().map(|vm| vm.name.as_str()).collect();
        if context.output.is_json() {
            context.output.json(&restored.vms)?;
        } else {
            context.output.line(&names.join("\n"))?;
        }
        Ok(0)
    }
}

/// Return a VM to one of its snapshots
#[derive(Debug, Args)]
#[command(after_help = "\
Memory, processes and files are as they were when the snapshot was taken; what the VM did since is gone.

Example:
  microvm rollback dev ready")]
pub(crate) struct Rollback {
    /// Name or id of the VM
    vm: VmRef,
    /// Name or id of the snapshot
    snapshot: String,
}

impl Rollback {
    pub(crate) async fn run(self, context: &Context) -> Result<u8, CliError> {
        let restored = context.client.rollback(&self.vm, &self.snapshot).await?;
        let vm = restored.vms.first();
        context.output.value(&vm, vm.map_or(self.vm.as_str(), |vm| vm.name.as_str()))?;
        Ok(0)
    }
}
