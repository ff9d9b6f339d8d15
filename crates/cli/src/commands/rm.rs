//! `microvm rm`: VMs that are no longer needed.

use clap::Args;
use microvm_client::{ClientError, VmQuery};
use microvm_types::{ErrorKind, VmRef};

use crate::commands::lifecycle::keep_first;
use crate::context::Context;
use crate::error::CliError;
use crate::output::whole;

/// Delete VMs, running ones included
#[derive(Debug, Args)]
#[command(after_help = "\
Kills their machines, removes their disks, and prints their names.

Examples:
  microvm rm dev
  microvm rm --all")]
pub(crate) struct Rm {
    /// Names or ids of the VMs
    #[arg(required_unless_present = "all", value_name = "VM")]
    vms: Vec<VmRef>,
    /// All VMs
    #[arg(long, conflicts_with = "vms")]
    all: bool,
    /// Ignore VMs that do not exist
    #[arg(short, long)]
    force: bool,
}

impl Rm {
    pub(crate) async fn run(self, context: &Context) -> Result<u8, CliError> {
        let (mut vms, mut code) = (self.vms, 0);
        if self.all {
            let all = context.client.list_vms(&VmQuery::default()).await?;
            code = whole("the record of the VM", &all.unreadable);
            vms = all.vms.into_iter().map(|vm| VmRef::from(vm.id)).collect();
        }
        let (mut done, mut failed) = (Vec::new(), None);
        for vm in vms {
            match context.client.delete_vm(&vm).await {
                Ok(()) => {
                    if !context.output.is_json() {
                        context.output.line(vm.as_str())?;
                    }
                    done.push(vm.to_string());
                }
                Err(ClientError::Problem(problem)) if self.force && problem.kind == ErrorKind::NotFound => {}
                Err(error) => keep_first(&mut failed, error, context),
            }
        }
        if context.output.is_json() {
            context.output.json(&done)?;
        }
        failed.map_or(Ok(code), Err)
    }
}
