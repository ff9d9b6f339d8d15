//! Ends of a machine: asked for, by itself, or by force.

use std::time::Duration;

use microvm_ports::hypervisor::MachineExit;
use microvm_ports::storage::LostDisks;
use microvm_ports::waiting::within;
use microvm_ports::{Guest, GuestError, Machine};
use microvm_types::guest::ShutdownMode;
use microvm_types::lifecycle::LifecycleEvent;
use microvm_types::template::HookPoint;
use microvm_types::vm::VmRecord;
use microvm_types::{LastStop, Phase, StopReason};

use super::VmActor;
use super::disks::{write_back, write_back_or_log};
use super::hooks;
use super::journal::{Journal, request_record};
use super::power::Vm;
use super::told::Told;
use crate::error::ServiceError;
use crate::launch;
use crate::vm::command::Command;
use crate::vm::volumes;

/// Longest time that a machine takes to end after its channel has closed.
const EXIT_AFTER_CLOSE: Duration = Duration::from_secs(2);

impl Vm {
    /// Stops the VM: by its agent within `grace`, then by force; at once if `force`.
    pub(super) async fn stop(
        &mut self,
        force: bool,
        grace: Duration,
        reason: StopReason,
    ) -> Result<(), ServiceError> {
        if !force {
            self.journal.hook(HookPoint::BeforeStop).await?;
        }
        // A paused guest cannot answer: it is ended as if its power failed, which its file system survives.
        let was_running = self.journal.phase() == Phase::Running;
        request_stop(&mut self.journal, reason).await?;
        if !force && was_running {
            self.reach.try_before_stop(&mut self.journal, grace).await;
        }
        let ended = self.end_machine(if force || !was_running { None } else { Some(grace) }).await;
        still_lives(&mut self.journal, ended).await?;
        // It has stopped in any case; whoever asked must know that a file of theirs is behind.
        let written_back = write_back(&self.journal, LostDisks::Keep).await;
        self.journal.note(LifecycleEvent::Stopped, Told::stop(reason)).await;
        let _ = self.journal.hook(HookPoint::AfterStop).await;
        written_back
    }

    /// Ends the machine; a failure is logged.
    pub(super) async fn end_machine_or_log(&mut self) {
        if let Err(error) = self.end_machine(None).await {
            tracing::error!(vm = %self.journal.record.id, %error, "a VMM process could not be ended");
        }
    }

    /// Ends the machine: by the agent within `grace`, else by the VMM, else by signal.
    ///
    /// # Errors
    /// If a process of it may still live; the record goes on naming it.
    pub(super) async fn end_machine(&mut self, grace: Option<Duration>) -> Result<(), ServiceError> {
        self.branching.end_standby();
        if let Some(machine) = self.journal.machine.clone() {
            if let (Some(grace), Some(guest)) = (grace, self.journal.guest.clone())
                && !self.powered_off(&*machine, &*guest, grace).await
            {
                tracing::warn!(vm = %self.journal.record.id, "the guest did not power off by itself, ending it");
            }
            // Closed before the kill, so that no request hangs on an agent that is gone.
            if let Some(guest) = self.journal.guest.take() {
                guest.close();
            }
            if let Err(error) = machine.kill(self.journal.shared.settings.kill_deadline).await {
                tracing::error!(vm = %self.journal.record.id, %error, "the machine did not end, sweeping");
            }
        }
        // Also after a kill that worked: it finds helpers of the VMM and machines that no record names.
        let swept = sweep(&self.journal).await;
        self.journal.machine = None;
        self.journal.guest = None;
        self.reach.settled(&mut self.journal);
        // A process that may live stays named, so that the next start or delete tries to end it again.
        if swept.is_ok() {
            self.journal.record.machine = None;
        }
        swept
    }

    /// Asks the agent to power off and waits for it, no longer than one and a half times `grace` (the half is for the
    /// kernel to sync), and not when a delete or a stop by force arrives or the server ends.
    async fn powered_off(&mut self, machine: &dyn Machine, guest: &dyn Guest, grace: Duration) -> bool {
        let polite = async {
            guest.shutdown(ShutdownMode::PowerOff, grace).await?;
            Ok::<_, GuestError>(launch::exited(machine.state()).await)
        };
        let limited = within(grace + grace / 2, polite);
        let impatient = |command: &Command| {
            matches!(command, Command::Delete { .. } | Command::Stop { force: true, .. }).then_some(())
        };
        let outcome = self.inbox.unless(&self.journal.shared.ending, impatient, limited).await;
        matches!(outcome, Ok(Ok(Ok(_))))
    }
}

/// Fails a VM whose machine could not be ended, so that nobody starts a second one on its disk.
pub(super) async fn still_lives(
    journal: &mut Journal,
    ended: Result<(), ServiceError>,
) -> Result<(), ServiceError> {
    if let Err(error) = &ended {
        let words = format!("its machine could not be ended: {error}");
        journal.note(LifecycleEvent::Lost, Told::stop_with(StopReason::NotEnded, words)).await;
    }
    ended
}

/// Asks for the end of the machine. Its reason is kept from here on: a crash does not lose it.
pub(super) async fn request_stop(journal: &mut Journal, reason: StopReason) -> Result<(), ServiceError> {
    let at_ms = journal.now_ms();
    let change = |record: &mut VmRecord| {
        record.life.apply(LifecycleEvent::Stop)?;
        record.last_stop = Some(LastStop { reason, at_ms, detail: None });
        Ok(())
    };
    request_record(journal, change).await
}

/// Notes a VM whose machine was ended by force: a stop overtook its start, or a crash its stop.
pub(super) async fn stopped_by_force(journal: &mut Journal, told: Told) {
    journal.record.machine = None;
    journal.note(journal.record.life.ended(), told).await;
}

/// Ends what runs for the VM, whoever started it.
async fn sweep(journal: &Journal) -> Result<(), ServiceError> {
    let Journal { shared, record, .. } = journal;
    let directory = shared.ports.vm_storage.vm_directory(&record.id);
    // A record that a later version wrote cannot be read; the directory still leads to the process.
    let machine = record.machine.clone().and_then(|value| serde_json::from_value(value).ok());
    Ok(shared.ports.hypervisor(&record.template)?.sweep(&record.id, &directory, machine.as_ref()).await?)
}

/// Ends a machine that could not be ended when it was to, or that no record knows any more: before its disk is touched or a
/// second one starts.
///
/// # Errors
/// If it still cannot be ended.
pub(super) async fn end_last_machine(journal: &mut Journal) -> Result<(), ServiceError> {
    // The record of a VM that failed may be older than its machine (see `adopt`).
    if journal.record.machine.is_some() || journal.phase() == Phase::Failed {
        sweep(journal).await?;
        journal.record.machine = None;
    }
    Ok(())
}

/// Ends a machine that could not be ended when the VM failed, and writes back what could not be written back then.
pub(super) async fn finish_end(journal: &mut Journal) -> Result<(), ServiceError> {
    let lived = journal.record.machine.is_some();
    if lived {
        end_last_machine(journal).await?;
        journal.save_or_log(Told::NOTHING).await;
    }
    let written_back = write_back(journal, LostDisks::Keep).await;
    if lived {
        volumes::release_at_rest(&journal.shared, &journal.record);
    }
    written_back
}

/// Ends what runs for a VM that is to have no machine; a failure is logged.
pub(super) async fn sweep_or_log(journal: &Journal) {
    if let Err(error) = sweep(journal).await {
        tracing::error!(vm = %journal.record.id, %error, "a VMM process could not be ended");
    }
}

impl VmActor {
    /// Takes note of a machine that has ended by itself.
    pub(super) async fn machine_exited(&mut self, exit: MachineExit) {
        let asked_to_restart = exit == MachineExit::GuestReset;
        let stop = match exit {
            MachineExit::GuestShutdown => StopReason::GuestPoweredOff,
            MachineExit::GuestReset => StopReason::GuestReset,
            MachineExit::GuestPanic => StopReason::GuestPanic,
            MachineExit::Killed | MachineExit::Vmm(_) => StopReason::VmmDied,
        };
        if !matches!(exit, MachineExit::GuestShutdown | MachineExit::GuestReset) {
            return self.fail(Told::stop_with(stop, exit.to_string())).await;
        }
        // The guest is off; what may be left is the process of the VMM.
        self.vm.end_machine_or_log().await;
        write_back_or_log(&self.vm.journal).await;
        let rest = asked_to_restart.then(|| self.vm.restarting.lost());
        let reason = match rest {
            Some(rest) if !rest.is_zero() => {
                format!("{exit}, again within a minute: it starts in {} s", rest.as_secs())
            }
            _ => exit.to_string(),
        };
        let told = Told::stop_with(stop, reason);
        self.vm.journal.note(LifecycleEvent::Stopped, told.clone()).await;
        match rest {
            // The first reset is an ordinary reboot; a guest that resets in a loop waits in `stopped`.
            Some(rest) if rest.is_zero() => self.restart().await,
            Some(_) => {}
            None if self.vm.journal.record.limits.ephemeral => self.erase_ephemeral(told).await,
            None => {}
        }
    }

    /// Starts the VM again after its guest has reset itself. One that does so in a loop rests longer each time, so that it
    /// does not keep the host busy with booting.
    pub(super) async fn restart(&mut self) {
        self.vm.restarting.cancel();
        // Somebody may have started or deleted it while the rest passed.
        if self.vm.journal.phase() != Phase::Stopped {
            return;
        }
        if let Err(error) = self.vm.start(false).await {
            tracing::warn!(vm = %self.vm.journal.record.id, %error, "restart asked by the guest failed");
        }
    }

    /// Takes note of a channel that has closed.
    pub(super) async fn guest_closed(&mut self, reason: String) {
        // A guest that powers off or dies closes its channel a moment before its machine ends.
        if let Some(machine) = &self.vm.journal.machine {
            let exit = tokio::time::timeout(EXIT_AFTER_CLOSE, launch::exited(machine.state())).await;
            if let Ok(exit) = exit {
                return self.machine_exited(exit).await;
            }
        }
        let Vm { journal, reach, .. } = &mut self.vm;
        if journal.phase() == Phase::Running {
            reach.lost(journal, format!("the agent was lost: {reason}"));
        } else {
            // Its processors are stopped; the channel is opened again when they go on.
            journal.guest = None;
            journal.publish();
        }
    }

    /// Fails a VM that has lost its machine.
    pub(super) async fn fail(&mut self, told: Told) {
        let reason = told.words.as_deref().unwrap_or_default();
        tracing::warn!(vm = %self.vm.journal.record.id, reason, "VM failed");
        self.vm.end_machine_or_log().await;
        let journal = &mut self.vm.journal;
        journal.note(LifecycleEvent::Lost, told.clone()).await;
        hooks::tell_failure(journal);
        // The pool makes another one: a member that failed is never handed out.
        if let Some(member) = &journal.record.pool {
            journal.shared.pools.vm_gone(&journal.record.tenant, &member.pool);
        }
        if journal.record.limits.ephemeral {
            self.erase_ephemeral(told).await;
        }
    }
}
