//! Verbs made of several commands: restart, signals for a whole VM, changes, numbers.

use std::time::Duration;

use microvm_ports::hypervisor::MachineCounters;
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
/// Longest time a guest is waited for when its numbers are read.
const HEALTH: Duration = Duration::from_secs(1);

/// Resource use of a VM at one moment.
#[derive(Debug, Clone)]
pub struct VmStats {
    /// The VM.
    pub view: VmView,
    /// Counters of its machine; all 0 without one.
    pub counters: MachineCounters,
    /// Numbers of its guest; `None` if it does not run, or did not answer in a second.
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
        let phase = handle.record().phase();
        if phase == Phase::Hibernated && !force {
            handle.ask(|reply| Command::Start { cold: false, reply }).await?;
        }
        if !matches!(phase, Phase::Stopped | Phase::Failed) {
            handle.ask(|reply| Command::Stop { force, grace, reply }).await?;
        }
        handle.ask(|reply| Command::Start { cold: force, reply }).await?;
        Ok(handle.view())
    }

    /// Sends a signal to a VM: SIGKILL ends its machine at once, its disk stays; any other goes to every command that was
    /// started through the agent and still runs. The processes that got it.
    ///
    /// # Errors
    /// [`ServiceError::NotRunning`] if it has no machine; [`ServiceError::NoCommand`] if no command runs.
    pub async fn kill(&self, vm: &VmRef, signal: u8) -> Result<Vec<ProcessId>, ServiceError> {
        self.context.authorise(OperationName::VM_KILL)?;
        let handle = self.context.owned(vm)?;
        let record = handle.record();
        if signal == SIGKILL {
            if !record.phase().has_machine() {
                return Err(ServiceError::NotRunning(record.phase()));
            }
            handle.ask(|reply| Command::Stop { force: true, grace: Duration::ZERO, reply }).await?;
            return Ok(Vec::new());
        }
        let guest = handle.guest(&self.context.shared).await?;
        let mut reached = Vec::new();
        for process in guest.processes().await? {
            // One that ended in between needs no signal.
            if process.exit.is_none() && guest.signal(&process.id, signal).await.is_ok() {
                reached.push(process.id);
            }
        }
        if reached.is_empty() { Err(ServiceError::NoCommand(record.name)) } else { Ok(reached) }
    }

    /// Gives a VM another name. Its guest has the new host name after its next start.
    ///
    /// # Errors
    /// See [`ServiceError`]; in particular a name that is taken.
    pub async fn rename(&self, vm: &VmRef, name: Name) -> Result<VmView, ServiceError> {
        self.context.authorise(OperationName::VM_RENAME)?;
        let change = Box::new(VmChange { name: Some(name), ..VmChange::default() });
        self.command(vm, |reply| Command::Change { change, reply }).await
    }

    /// Changes labels, metadata and limits of a VM, and its name, whatever it is doing.
    ///
    /// # Errors
    /// See [`ServiceError`]; nothing has changed then.
    pub async fn change(&self, vm: &VmRef, change: VmChange) -> Result<VmView, ServiceError> {
        self.context.authorise(OperationName::VM_UPDATE)?;
        admission::check_labels(&change.labels)?;
        self.command(vm, |reply| Command::Change { change: Box::new(change), reply }).await
    }

    /// Resource use of a VM. Reading it is no use of the VM: idle limits go on, and what rests is not woken.
    ///
    /// # Errors
    /// [`ServiceError::UnknownVm`]; [`ServiceError::Machine`] if the VMM does not tell.
    pub async fn stats(&self, vm: &VmRef) -> Result<VmStats, ServiceError> {
        self.context.authorise(OperationName::VM_STATS)?;
        let now = self.context.owned(vm)?.published.borrow().clone();
        let counters = match &now.machine {
            Some(machine) => machine.counters().await?,
            None => MachineCounters::default(),
        };
        let guest = match &now.guest {
            Some(guest) if now.record.phase() == Phase::Running => {
                tokio::time::timeout(HEALTH, guest.health()).await.ok().and_then(Result::ok)
            }
            _ => None,
        };
        Ok(VmStats { view: now.view(), counters, guest })
    }
}
