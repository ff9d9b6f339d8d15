//! `microvm ls`: which VMs there are.

use clap::Args;
use microvm_client::VmQuery;
use microvm_types::vm::Rest;
use microvm_types::{ByteSize, Phase};

use crate::context::Context;
use crate::error::CliError;
use crate::output::{age, whole};
use crate::pairs::pair;

/// List VMs
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  microvm ls --label team=red
  microvm ls --state hibernated
  microvm ls -q --state failed

Exit code: 1 if the record of a VM cannot be read, so that the list is not whole.")]
pub(crate) struct Ls {
    /// Only VMs with this label
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = pair)]
    labels: Vec<(String, String)>,
    /// Only VMs with this metadata
    #[arg(long, value_name = "KEY=VALUE", value_parser = pair)]
    metadata: Vec<(String, String)>,
    /// Only VMs in this state
    #[arg(long = "state", value_parser = state)]
    states: Vec<Phase>,
    /// Only VMs whose name contains this text
    #[arg(long)]
    name: Option<String>,
    /// Print ids only
    #[arg(short, long)]
    quiet: bool,
}

pub(crate) fn state(text: &str) -> Result<Phase, String> {
    let found = Phase::SHOWN.into_iter().find(|phase| phase.as_str() == text);
    found.ok_or_else(|| {
        let known: Vec<&str> = Phase::SHOWN.into_iter().map(Phase::as_str).collect();
        format!("there are {}", known.join(", "))
    })
}

/// The state, with a note if the VM is unreachable or its disk is full.
fn state_cell(vm: &microvm_api::Vm) -> String {
    let note = match &vm.rest {
        _ if vm.unreachable_since.is_some() => " (unreachable)",
        Some(Rest::DiskFull) => " (disk full)",
        _ => "",
    };
    format!("{}{note}", vm.state)
}

impl Ls {
    pub(crate) async fn run(self, context: &Context) -> Result<u8, CliError> {
        let query =
            VmQuery { labels: self.labels, metadata: self.metadata, states: self.states, name: self.name };
        let list = context.client.list_vms(&query).await?;
        let (vms, code) = (&list.vms, whole("the record of the VM", &list.unreadable));
        if self.quiet {
            for vm in vms {
                context.output.line(vm.id.as_str())?;
            }
            return Ok(code);
        }
        let rows: Vec<Vec<String>> = vms
            .iter()
            .map(|vm| {
                vec![
                    vm.name.to_string(),
                    state_cell(vm),
                    vm.vcpus.to_string(),
                    ByteSize::mib(vm.memory_mib.into()).to_string(),
                    vm.image.clone(),
                    age(&vm.created_at),
                ]
            })
            .collect();
        context.output.table(&list, &["NAME", "STATE", "CPUS", "MEMORY", "IMAGE", "AGE"], rows)?;
        Ok(code)
    }
}
