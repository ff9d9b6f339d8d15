//! How a machine ends: asked to, by itself, or by force.

use std::time::Duration;

use microvm_ports::hypervisor::MachineExit;
use microvm_ports::{Guest, GuestError, Machine};
use microvm_types::Phase;
use microvm_types::guest::ShutdownMode;
use microvm_types::lifecycle::LifecycleEvent;
use microvm_types::template::HookPoint;

use super::VmActor;
use crate::error::ServiceError;
use crate::launch;
use crate::vm::command::Command;
use crate::vm::hooks;

/// How long a machine may take to end after its channel has closed.
const EXIT_AFTER_CLOSE: Duration = Duration::from_secs(2);

impl VmActor {
    pub(super) async fn stop(&mut self, force: bool, grace: Duration) -> Result<(), ServiceError> {
        let ports = self.shared.ports.clone();
        if !force {
            hooks::run(&ports, &self.record, HookPoint::BeforeStop).await?;
        }
        let was_running = self.record.phase() == Phase::Running;
        self.request(LifecycleEvent::Stop).await?;
        if !force && was_running {
            self.reach_for_stop(grace).await;
        }
        let ended = self.end_machine(if force || !was_running { None } else { Some(grace) }).await;
        self.still_lives(ended).await?;
        // It has stopped in any case; whoever asked must know that a file of his is behind.
        let written_back = self.write_back().await;
        self.note(LifecycleEvent::Stopped, None).await;
        let _ = hooks::run(&ports, &self.record, HookPoint::AfterStop).await;
        written_back
    }

    /// Fails a VM whose machine could not be ended, so that nobody starts a second one on its disk.
    pub(super) async fn still_lives(&mut self, ended: Result<(), ServiceError>) -> Result<(), ServiceError> {
        if let Err(error) = &ended {
            self.note(LifecycleEvent::Lost, Some(format!("its machine could not be ended: {error}"))).await;
        }
        ended
    }

    /// Ends the machine, and tells the log if it does not end.
    pub(super) async fn end_machine_or_log(&mut self) {
        if let Err(error) = self.end_machine(None).await {
            tracing::error!(vm = %self.record.id, %error, "a VMM process could not be ended");
        }
    }

    /// Ends the machine: by the agent within `grace`, else by the VMM, else by signal.
    ///
    /// # Errors
    /// If a process of it may still live; the record goes on naming it.
    pub(super) async fn end_machine(&mut self, grace: Option<Duration>) -> Result<(), ServiceError> {
        self.standby.clear();
        if let Some(machine) = self.machine.clone() {
            if let (Some(grace), Some(guest)) = (grace, self.guest.clone())
                && !self.powered_off(&*machine, &*guest, grace).await
            {
                tracing::warn!(vm = %self.record.id, "the guest did not power off by itself, ending it");
            }
            if let Some(guest) = self.guest.take() {
                guest.close();
            }
            if let Err(error) = machine.kill(self.shared.settings.kill_deadline).await {
                tracing::error!(vm = %self.record.id, %error, "the machine did not end, sweeping");
            }
        }
        let swept = self.sweep().await;
        self.machine = None;
        self.guest = None;
        self.not_unreachable();
        if swept.is_ok() {
            self.record.machine = None;
        }
        swept
    }

    /// Asks the agent to power off and waits for it, no longer than one and a half times `grace` (the half is for the
    /// kernel to sync), and not when a delete or a stop by force arrives or the server ends.
    pub(super) async fn powered_off(
        &mut self,
        machine: &dyn Machine,
        guest: &dyn Guest,
        grace: Duration,
    ) -> bool {
        let polite = async {
            guest.shutdown(ShutdownMode::PowerOff, grace).await?;
            Ok::<_, GuestError>(launch::exited(machine.state()).await)
        };
        let limited = tokio::time::timeout(grace + grace / 2, polite);
        tokio::pin!(limited);
        loop {
            tokio::select! {
                outcome = &mut limited => return matches!(outcome, Ok(Ok(_))),
                () = self.shared.ending.cancelled() => return false,
                Some(order) = self.commands.recv() => {
                    let impatient = matches!(order.command, Command::Delete(_) | Command::Stop { force: true, .. });
                    self.pending.push_back(order);
                    if impatient {
                        return false;
                    }
                }
            }
        }
    }

    async fn sweep(&self) -> Result<(), ServiceError> {
        let directory = self.shared.ports.vm_storage.vm_directory(&self.record.id);
        let machine = self.record.machine.clone().and_then(|value| serde_json::from_value(value).ok());
        let swept = self.shared.ports.hypervisor.sweep(&self.record.id, &directory, machine.as_ref());
        Ok(swept.await?)
    }

    /// Ends a machine that could not be ended when it was to: before its disk is touched or a second one starts.
    ///
    /// # Errors
    /// If it still cannot be ended.
    pub(super) async fn end_last_machine(&mut self) -> Result<(), ServiceError> {
        if self.record.machine.is_some() {
            self.sweep().await?;
            self.record.machine = None;
        }
        Ok(())
    }

    /// Ends what runs for a VM that is to have no machine.
    pub(super) async fn sweep_or_log(&self) {
        if let Err(error) = self.sweep().await {
            tracing::error!(vm = %self.record.id, %error, "a VMM process could not be ended");
        }
    }

    pub(super) async fn machine_exited(&mut self, exit: MachineExit) {
        let asked_to_restart = exit == MachineExit::GuestReset;
        if matches!(exit, MachineExit::GuestShutdown | MachineExit::GuestReset) {
            self.end_machine_or_log().await;
            self.write_back_or_log().await;
            let rest = asked_to_restart.then(|| self.restarting.lost());
            let reason = match rest {
                Some(rest) if !rest.is_zero() => {
                    format!("{exit}, again within a minute: it starts in {} s", rest.as_secs())
                }
                _ => exit.to_string(),
            };
            self.note(LifecycleEvent::Stopped, Some(reason)).await;
            if let Some(rest) = rest {
                if rest.is_zero() {
                    self.restart().await;
                }
            } else if self.record.limits.ephemeral {
                self.erase_ephemeral().await;
            }
        } else {
            self.fail(exit.to_string()).await;
        }
    }

    /// Starts it again after its guest has reset itself. One that does so in a loop rests longer each time, so that it
    /// does not keep the host busy with booting.
    pub(super) async fn restart(&mut self) {
        self.restarting.cancel();
        if self.record.phase() != Phase::Stopped {
            return;
        }
        if let Err(error) = self.start(false).await {
            tracing::warn!(vm = %self.record.id, %error, "restart asked by the guest failed");
        }
    }

    pub(super) async fn guest_closed(&mut self, reason: String) {
        // A guest that powers off or dies closes its channel a moment before its machine ends.
        if let Some(machine) = &self.machine {
            let exit = tokio::time::timeout(EXIT_AFTER_CLOSE, launch::exited(machine.state())).await;
            if let Ok(exit) = exit {
                return self.machine_exited(exit).await;
            }
        }
        if self.record.phase() == Phase::Running {
            self.unreachable(format!("the agent was lost: {reason}"));
        } else {
            // Its processors stand still; the channel is opened again when they go on.
            self.guest = None;
            self.publish_now();
        }
    }

    pub(super) async fn fail(&mut self, reason: String) {
        tracing::warn!(vm = %self.record.id, reason, "VM failed");
        self.end_machine_or_log().await;
        self.note(LifecycleEvent::Lost, Some(reason)).await;
        if let Some(member) = &self.record.pool {
            self.shared.pools.vm_gone(&self.record.tenant, &member.pool);
        }
        if self.record.limits.ephemeral {
            self.erase_ephemeral().await;
        }
    }
}
