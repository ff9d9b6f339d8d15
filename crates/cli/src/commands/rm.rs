//! `microvm rm`: VMs that are no longer needed.

use clap::Args;
use microvm_client::{ClientError, VmQuery};
use microvm_types::{ErrorKind, Name, VmRef};

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
    /// Delete VMs also if files that are disks of theirs (`extra_disks`) cannot take what they wrote to them; that is lost.
    /// Refused while such a file has a part of it
    #[arg(long)]
    forget_disks: bool,
}

impl Rm {
    pub(crate) async fn run(self, context: &Context) -> Result<u8, CliError> {
        let (mut vms, mut code) = (Vec::new(), 0);
        if self.all {
            let all = context.client.list_vms(&VmQuery::default()).await?;
            code = whole("the record of the VM", &all.unreadable);
            // By id: one of these names may be a new VM's when its turn comes.
            vms.extend(all.vms.into_iter().map(|vm| (VmRef::from(vm.id), Some(vm.name))));
        }
        vms.extend(self.vms.into_iter().map(|vm| (vm, None)));
        let (mut done, mut failed) = (Vec::new(), None);
        for (vm, name) in vms {
            match delete(context, vm, name, self.forget_disks).await {
                Ok(name) => {
                    if !context.output.is_json() {
                        context.output.line(name.as_str())?;
                    }
                    done.push(name);
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

/// Deletes a VM; its name.
async fn delete(
    context: &Context,
    vm: VmRef,
    name: Option<Name>,
    forget_disks: bool,
) -> Result<Name, ClientError> {
    let (vm, name) = match name {
        Some(name) => (vm, name),
        // By id from here on: another VM may get the name meanwhile.
        None => {
            let found = context.client.vm(&vm).await?;
            (VmRef::from(found.id), found.name)
        }
    };
    let client = &context.client;
    let deleted = match forget_disks {
        true => client.delete_vm_forgetting_disks(&vm).await,
        false => client.delete_vm(&vm).await,
    };
    deleted.map(|()| name)
}
