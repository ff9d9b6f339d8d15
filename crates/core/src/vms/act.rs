//! Verbs made of several commands: restart, signals for a whole VM, changes, numbers.

use std::time::Duration;

use microvm_ports::guest::GuestError;
use microvm_ports::hypervisor::MachineCounters;
use microvm_ports::waiting::within;
use microvm_types::guest::GuestHealth;
use microvm_types::{Name, OperationName, Phase, ProcessId, VmRef};

use super::Vms;
use crate::admission;
use crate::error::ServiceError;
use crate::vm::change::VmChange;
use crate::vm::command::Command;
use crate::vm::view::VmView;

/// Signal that no program can handle.
const SIGKILL: u8 = 9;
/// Steps of a restart before it gives up against somebody who hibernates the VM.
const STEPS_MAX: u32 = 4;
/// Longest delay of a shutdown: a week.
const SHUTDOWN_DELAY_MAX: Duration = Duration::from_secs(7 * 24 * 3_600);
/// Longest time a guest, or its balloon, is waited for when its numbers are read.
const HEALTH: Duration = Duration::from_secs(1);

/// Resource use of a VM at one moment.
#[derive(Debug, Clone)]
pub struct VmStats {
    /// The VM.
    pub view: VmView,
    /// Counters of its machine; all 0 without one.
    pub counters: MachineCounters,
    /// MiB that its guest uses now, as its balloon has them: another number than that of the record while the guest follows a resize,
    /// or if it does not follow. `None` without a machine or a balloon, and if that is not told in a second.
    pub memory_actual_mib: Option<u32>,
    /// Numbers of its guest; `None` if it does not run, did not answer in a second, or the caller may not read from guests.
    pub guest: Option<GuestHealth>,
}

impl Vms {
    /// Stops a VM as [`Vms::stop`] does, and starts it. One that is hibernated is woken first, so that its programs end in
    /// order; by `force` its memory is given up instead.
    ///
    /// # Errors
    /// See [`ServiceError`]. Cancelling may leave it stopped.
    pub async fn restart(
        &self,
        vm: &VmRef,
        force: bool,
        grace: Option<Duration>,
    ) -> Result<VmView, ServiceError> {
        self.context.authorise(OperationName::VM_RESTART)?;
        let handle = self.context.owned(vm)?;
        let grace = grace.unwrap_or(self.context.shared.settings.stop_grace);
        let mut to_stop = !matches!(handle.record().phase(), Phase::Stopped | Phase::Failed);
        // A stop does nothing to a VM that is hibernated by the time it is carried out, so it is looked at again. Nothing but
        // that is: somebody else's restart may have begun meanwhile.
        for step in 0.. {
            // Looked at in each round: idle care may put the VM to disk between two commands.
            let asleep = handle.record().life.asleep().is_some();
            if asleep && !force {
                if step == STEPS_MAX {
                    return Err(ServiceError::Overtaken("hibernated again"));
                }
                handle.ask(|reply| Command::Start { cold: false, reply }).await?;
                to_stop = true;
            } else if to_stop && !asleep {
                handle.ask(|reply| Command::Stop { force, grace, reply }).await?;
                to_stop = false;
            } else {
                break;
            }
        }
        handle.ask(|reply| Command::Start { cold: force, reply }).await?;
        Ok(handle.view())
    }

    /// Sends a signal to a VM: SIGKILL ends its machine at once, its disk stays; any other goes to every command that was
    /// started through the agent and still runs, and needs the permission for signals to processes as well. The processes that
    /// got it, and the VM.
    ///
    /// # Errors
    /// [`ServiceError::NotRunning`] if it has no machine; [`ServiceError::NoCommand`] if no command runs.
    pub async fn kill(&self, vm: &VmRef, signal: u8) -> Result<(Vec<ProcessId>, VmView), ServiceError> {
        self.context.authorise(OperationName::VM_KILL)?;
        let handle = self.context.owned(vm)?;
        let record = handle.record();
        if signal == SIGKILL {
            if !record.phase().has_machine() {
                return Err(ServiceError::NotRunning(record.phase()));
            }
            handle.ask(|reply| Command::Stop { force: true, grace: Duration::ZERO, reply }).await?;
            let record = handle.record();
            // It was being hibernated: its processes live on in the saved memory.
            if record.life.asleep().is_some() {
                return Err(ServiceError::NotRunning(record.phase()));
            }
            return Ok((Vec::new(), handle.view()));
        }
        // Asked for here only: to end the machine is no access to its guest.
        self.context.authorise(OperationName::PROCESS_SIGNAL)?;
        let guest = handle.clone().guest(&self.context.shared).await?;
        let mut reached = Vec::new();
        for process in guest.processes().await? {
            // The agent lists commands for some minutes after their end.
            if process.exit.is_some() {
                continue;
            }
            match guest.signal(&process.id, signal).await {
                Ok(()) => reached.push(process.id),
                // One that ended in between needs no signal.
                Err(GuestError::Refused { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        if reached.is_empty() {
            return Err(ServiceError::NoCommand(record.name));
        }
        Ok((reached, handle.view()))
    }

    /// Shuts a VM down after `delay`, at most a week: by its agent, or at once if `force`. A newer wish takes the
    /// place of an older one; a start before it is due gives it up, as does whatever else ends the VM. One that is off already
    /// stays so.
    ///
    /// # Errors
    /// See [`ServiceError`]; [`ServiceError::Invalid`] if the delay is too long.
    pub async fn shutdown(&self, vm: &VmRef, delay: Duration, force: bool) -> Result<VmView, ServiceError> {
        self.context.authorise(OperationName::GUEST_SHUTDOWN)?;
        if delay > SHUTDOWN_DELAY_MAX {
            let (asked, most) = (delay.as_secs(), SHUTDOWN_DELAY_MAX.as_secs());
            let reason = format!("{asked} s are too long, at most {most} s (a week) are possible");
            return Err(ServiceError::Invalid { field: "delay_seconds", reason });
        }
        if delay.is_zero() {
            let grace = self.context.shared.settings.stop_grace;
            return self.context.command(vm, |reply| Command::Stop { force, grace, reply }).await;
        }
        self.context.command(vm, |reply| Command::PlanShutdown { delay, force, reply }).await
    }

    /// Gives a VM another name. Its guest has the new host name after its next start.
    ///
    /// # Errors
    /// See [`ServiceError`]; in particular a name that is taken.
    pub async fn rename(&self, vm: &VmRef, name: Name) -> Result<VmView, ServiceError> {
        self.context.authorise(OperationName::VM_RENAME)?;
        let change = Box::new(VmChange { name: Some(name), ..VmChange::default() });
        self.context.command(vm, |reply| Command::Change { change, reply }).await
    }

    /// Changes labels, metadata and limits of a VM, and its name, whatever it is doing. A change by which the VM may be deleted
    /// needs the permission for that as well.
    ///
    /// # Errors
    /// See [`ServiceError`]; nothing has changed then.
    pub async fn change(&self, vm: &VmRef, change: VmChange) -> Result<VmView, ServiceError> {
        self.context.authorise(OperationName::VM_UPDATE)?;
        admission::check_labels(&change.labels)?;
        // A limit on an ephemeral VM deletes it, which is more than a change.
        let ephemeral = self.context.owned(vm)?.record().limits.ephemeral;
        if change.limits.may_delete(ephemeral) {
            self.context.authorise(OperationName::VM_DELETE)?;
        }
        self.context.command(vm, |reply| Command::Change { change: Box::new(change), reply }).await
    }

    /// Resource use of a VM. Reading it is no use of the VM: idle limits go on, and what rests is not woken.
    ///
    /// # Errors
    /// [`ServiceError::UnknownVm`]; [`ServiceError::Machine`] if the VMM does not tell.
    pub async fn stats(&self, vm: &VmRef) -> Result<VmStats, ServiceError> {
        self.context.authorise(OperationName::VM_STATS)?;
        // Read from what is published, without a lease, so that watching a VM does not keep it awake.
        let now = self.context.owned(vm)?.published.borrow().clone();
        let counters = match &now.machine {
            Some(machine) => machine.counters().await?,
            None => MachineCounters::default(),
        };
        // A VMM that is busy, or a guest under load, must not hold up the numbers of the machine, which are there in any case.
        let actual = async {
            let balloon = now.machine.as_ref()?.balloon()?;
            within(HEALTH, balloon.actual_mib()).await.ok()?.ok()
        };
        let may_see = self.context.authorise(OperationName::GUEST_HEALTH).is_ok();
        let health = async {
            let guest = now.guest.as_ref().filter(|_| may_see && now.record.phase() == Phase::Running)?;
            within(HEALTH, guest.health()).await.ok()?.ok()
        };
        let (memory_actual_mib, guest) = futures::join!(actual, health);
        Ok(VmStats { view: now.view(), counters, memory_actual_mib, guest })
    }
}
