//! `microvm port`: TCP ports of guests on this host.

use clap::{Args, Subcommand};
use microvm_types::VmRef;
use serde_json::json;

use crate::context::Context;
use crate::error::CliError;
use crate::forwarding::{Forwarding, PortPair};
use crate::interrupts::Interrupts;

/// Verbs for ports.
#[derive(Debug, Subcommand)]
pub(crate) enum Port {
    /// Forward ports of this host's loopback to ports of a VM
    Forward(ForwardPorts),
}

/// Forward ports of this host's loopback to ports of a VM
#[derive(Debug, Args)]
#[command(after_help = "\
TCP connections to 127.0.0.1 go to the guest's loopback, through the channel of its agent: the VM needs no network.
Each direction ends by itself. Prints what is forwarded, then works until Ctrl-C or the VM is deleted. Connections wait
while the VM is paused, and new ones are refused; all break when it stops, and new ones work again after `start`. A new
connection wakes a hibernated VM.

Examples:
  microvm port forward dev 8080:80
  microvm port forward dev 5432 0:80       0: any free port of this host

Exit code: 103 if a port is in use, 102 if the VM does not exist or was deleted, 130 after Ctrl-C.")]
pub(crate) struct ForwardPorts {
    /// Name or id of the VM
    vm: VmRef,
    /// Ports; one number stands for both
    #[arg(required = true, value_name = "[HOST:]GUEST")]
    ports: Vec<PortPair>,
}

impl Port {
    pub(crate) async fn run(self, context: &Context) -> Result<u8, CliError> {
        let Self::Forward(command) = self;
        let mut interrupts = Interrupts::new()?;
        // By its id: the name may be another VM's later.
        let vm = context.client.vm(&command.vm).await?;
        let forwarding = Forwarding::listen(&command.ports).await?;
        let value = json!({ "vm": vm.name, "ports": forwarding.json() });
        context.output.value(&value, &forwarding.lines(vm.name.as_str()).join("\n"))?;
        let id = VmRef::from(vm.id);
        match interrupts.unless(forwarding.serve_until_gone(&context.client, &id)).await? {}
    }
}
