//! `microvm create`: a VM that stays.

use std::time::Duration;

use clap::Args;
use microvm_api::Vm;
use microvm_types::VmRef;
use microvm_types::vm::Limits;

use crate::commands::machine::MachineOptions;
use crate::commands::ps::shortened;
use crate::commands::run::CREATING;
use crate::context::Context;
use crate::duration;
use crate::environment::Environment;
use crate::error::CliError;
use crate::forwarding::{Forwarding, PortPair};
use crate::interrupts::Interrupts;
use crate::notice::say;
use crate::progress;

/// Create a VM and start it
#[derive(Debug, Args)]
#[command(after_help = "\
Prints the name of the VM.

Examples:
  microvm create --name web -p 8080:80
  microvm create --name dev --cpus 2 --memory 512MiB
  microvm create --template linux-microvm --label team=red --idle 1h")]
pub(crate) struct Create {
    #[command(flatten)]
    machine: MachineOptions,
    /// Variables of every command in the VM
    #[command(flatten)]
    environment: Environment,
    /// Stop the VM after this time without use
    #[arg(long, value_name = "TIME", value_parser = duration::parse)]
    idle: Option<Duration>,
    /// Stop the VM this time after its creation
    #[arg(long, value_name = "TIME", value_parser = duration::parse)]
    lifetime: Option<Duration>,
    /// Pause the VM after this time without use; the next request wakes it
    #[arg(long, value_name = "TIME", value_parser = duration::parse)]
    pause_after: Option<Duration>,
    /// Hibernate the VM after this time without use; the next request wakes it
    #[arg(long, value_name = "TIME", value_parser = duration::parse)]
    hibernate_after: Option<Duration>,
    /// Delete the VM, instead of stopping it, when a limit passes or its guest ends
    #[arg(long)]
    ephemeral: bool,
    /// Boot the VM instead of forking it from its template's golden snapshot
    #[arg(long, conflicts_with = "no_start")]
    cold: bool,
    /// Forward a port of this host's loopback to a TCP port of the VM; this command then stays until Ctrl-C, and the VM after it
    #[arg(short = 'p', long = "publish", value_name = "[HOST:]GUEST", conflicts_with = "no_start")]
    ports: Vec<PortPair>,
    /// Show no progress
    #[arg(short, long)]
    quiet: bool,
    /// Do not start the VM
    #[arg(long)]
    no_start: bool,
}

impl Create {
    pub(crate) async fn run(self, context: &Context) -> Result<u8, CliError> {
        let mut request = self.machine.request(self.environment.all()?);
        request.start = !self.no_start;
        request.cold = self.cold;
        request.limits = Limits {
            idle_seconds: self.idle.map(seconds),
            lifetime_seconds: self.lifetime.map(seconds),
            pause_seconds: self.pause_after.map(seconds),
            hibernate_seconds: self.hibernate_after.map(seconds),
            ephemeral: self.ephemeral,
        };
        // Before the VM is made: a port that is taken costs none.
        let forwarding = Forwarding::listen(&self.ports).await?;
        let mut interrupts = Interrupts::new()?;
        let creation = interrupts.unless(async { Ok(context.client.create_vm(&request).await?) });
        let vm = progress::while_waiting(CREATING, self.quiet, creation).await?;
        if vm.reachable {
            tell_failed_start_commands(context, &vm).await;
        }
        context.output.value(&vm, vm.name.as_str())?;
        if forwarding.is_empty() {
            return Ok(0);
        }
        forwarding.lines(vm.name.as_str()).iter().for_each(|line| say(line));
        // By its id: the name may be another VM's later.
        let id = VmRef::from(vm.id);
        match interrupts.unless(forwarding.serve_until_gone(&context.client, &id)).await? {}
    }
}

/// Whole seconds, at least one.
fn seconds(time: Duration) -> u64 {
    time.as_secs().max(1)
}

/// Says which start commands of the template have failed by now. The VM is there all the same.
async fn tell_failed_start_commands(context: &Context, vm: &Vm) {
    // Whoever cannot ask will see it in `inspect`.
    let Ok(told) = context.client.start_commands(&VmRef::from(vm.id.clone())).await else { return };
    for failed in told.commands.iter().filter(|command| command.failed) {
        let (command, name) = (shortened(failed.command.clone(), failed.command_omitted), &vm.name);
        let reason = failed.reason.as_deref().unwrap_or("it failed");
        match (&failed.process, failed.exit_code) {
            (Some(id), Some(code)) => say(&format!(
                "the start command `{command}` ended with exit code {code}: `microvm logs {name} {id}` shows its output"
            )),
            _ => say(&format!("the start command `{command}`: {reason}")),
        }
    }
}
