//! `microvm start`, `stop`, `restart`, `pause`, `resume` and `hibernate`.

use std::time::Duration;

use clap::Args;
use microvm_api::Vm;
use microvm_api::guest::ShutdownGuest;
use microvm_api::vm::{RestartVm, StopVm};
use microvm_client::ClientError;
use microvm_types::VmRef;

use crate::context::Context;
use crate::duration;
use crate::error::CliError;

/// VMs by name or id.
#[derive(Debug, Args)]
pub(crate) struct Targets {
    /// Names or ids of the VMs
    #[arg(required = true, value_name = "VM")]
    vms: Vec<VmRef>,
}

/// Verb applied to each VM.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Verb {
    Start,
    Pause,
    Resume,
    Hibernate,
}

impl Targets {
    pub(crate) async fn run(self, context: &Context, verb: Verb) -> Result<u8, CliError> {
        let client = &context.client;
        each(context, &self.vms, async |vm: &VmRef| match verb {
            Verb::Start => client.start_vm(vm).await,
            Verb::Pause => client.pause_vm(vm).await,
            Verb::Resume => client.resume_vm(vm).await,
            Verb::Hibernate => client.hibernate_vm(vm).await,
        })
        .await
    }
}

/// Start stopped VMs; hibernated ones continue where they were
#[derive(Debug, Args)]
pub(crate) struct Start {
    #[command(flatten)]
    targets: Targets,
    /// Boot hibernated VMs from their disks and discard their saved memory
    #[arg(long)]
    cold: bool,
}

impl Start {
    pub(crate) async fn run(self, context: &Context) -> Result<u8, CliError> {
        if !self.cold {
            return self.targets.run(context, Verb::Start).await;
        }
        each(context, &self.targets.vms, async |vm: &VmRef| context.client.start_vm_cold(vm).await).await
    }
}

/// Shut down VMs; their disks stay
#[derive(Debug, Args)]
#[command(after_help = "\
The guest is asked to end its processes and to power off; what has not ended after the time is killed.

Examples:
  microvm stop dev
  microvm stop --time 1m dev
  microvm stop --delay 10m dev
  microvm stop --force dev")]
pub(crate) struct Stop {
    #[command(flatten)]
    targets: Targets,
    /// Kill at once, without a shutdown of the guest
    #[arg(short, long)]
    force: bool,
    /// Time for the guest to shut down before it is killed
    #[arg(short, long, value_name = "TIME", default_value = "10s", value_parser = duration::parse)]
    time: Duration,
    /// Shut down only after this time, at most a week; `microvm start` gives that up
    #[arg(long, value_name = "TIME", conflicts_with = "time", value_parser = duration::parse)]
    delay: Option<Duration>,
}

/// Whole seconds, the next above: less than a second is not none at all, and nothing comes earlier than asked.
fn whole_seconds(time: Duration) -> u64 {
    time.as_secs() + u64::from(time.subsec_nanos() > 0)
}

impl Stop {
    pub(crate) async fn run(self, context: &Context) -> Result<u8, CliError> {
        if let Some(delay) = self.delay {
            let how = ShutdownGuest { force: self.force, delay_seconds: whole_seconds(delay) };
            let shut_down = async |vm: &VmRef| context.client.shut_down_guest(vm, &how).await;
            return each(context, &self.targets.vms, shut_down).await;
        }
        let how = StopVm { force: self.force, grace_seconds: whole_seconds(self.time) };
        each(context, &self.targets.vms, async |vm: &VmRef| context.client.stop_vm(vm, &how).await).await
    }
}

/// Stop VMs and start them again
#[derive(Debug, Args)]
#[command(after_help = "\
As `stop` and `start`: the guest is asked to end its processes, and boots again from its disk. Stopped and failed VMs
are started; hibernated ones are woken first, so that their programs end in order.

Examples:
  microvm restart dev
  microvm restart --force dev")]
pub(crate) struct Restart {
    #[command(flatten)]
    targets: Targets,
    /// Kill at once, without a shutdown of the guest
    #[arg(short, long)]
    force: bool,
    /// Time for the guest to shut down before it is killed
    #[arg(short, long, value_name = "TIME", default_value = "10s", value_parser = duration::parse)]
    time: Duration,
}

impl Restart {
    pub(crate) async fn run(self, context: &Context) -> Result<u8, CliError> {
        let how = RestartVm { force: self.force, grace_seconds: whole_seconds(self.time) };
        each(context, &self.targets.vms, async |vm: &VmRef| context.client.restart_vm(vm, &how).await).await
    }
}

/// Applies `act` to every VM, also after one failed, and prints their names. The first failure is the outcome.
pub(crate) async fn each(
    context: &Context,
    vms: &[VmRef],
    act: impl AsyncFn(&VmRef) -> Result<Vm, ClientError>,
) -> Result<u8, CliError> {
    let (mut done, mut failed) = (Vec::new(), None);
    for vm in vms {
        match act(vm).await {
            Ok(vm) => {
                if !context.output.is_json() {
                    context.output.line(vm.name.as_str())?;
                }
                done.push(vm);
            }
            Err(error) => keep_first(&mut failed, error, context),
        }
    }
    // One value of JSON holds them all, so it is printed when all are done.
    if context.output.is_json() {
        context.output.json(&done)?;
    }
    failed.map_or(Ok(0), Err)
}

/// Applies `remove` to every name, also after one failed, and prints the names of what was removed. The first failure is
/// the outcome.
pub(crate) async fn each_name<T: ToString>(
    context: &Context,
    names: Vec<T>,
    remove: impl AsyncFn(&T) -> Result<(), ClientError>,
) -> Result<u8, CliError> {
    let (mut done, mut failed) = (Vec::new(), None);
    for name in names {
        match remove(&name).await {
            Ok(()) => {
                if !context.output.is_json() {
                    context.output.line(&name.to_string())?;
                }
                done.push(name.to_string());
            }
            Err(error) => keep_first(&mut failed, error, context),
        }
    }
    if context.output.is_json() {
        context.output.json(&done)?;
    }
    failed.map_or(Ok(0), Err)
}

/// Keeps the first failure for the end and tells the others now.
pub(crate) fn keep_first(first: &mut Option<CliError>, error: ClientError, context: &Context) {
    let error = CliError::from(error);
    if first.is_none() {
        *first = Some(error);
    } else {
        // The exit code is the first one's.
        let _ = error.report(context.output.format);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_of_a_second_is_a_grace_too() {
        let times = [(0, 0), (1, 1), (500, 1), (1_000, 1), (1_001, 2)];
        for (given_ms, seconds) in times {
            assert_eq!(whole_seconds(Duration::from_millis(given_ms)), seconds, "{given_ms} ms");
        }
    }
}
