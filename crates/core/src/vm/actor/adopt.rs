//! Taking up VMs of an earlier server process.

use std::sync::Arc;

use microvm_ports::guest::{CloseReason, Identity};
use microvm_ports::hypervisor::{MachineRecord, MachineState};
use microvm_ports::{Guest, GuestError, LaunchError, Machine};
use microvm_types::vm::VmRecord;
use microvm_types::{ErrorKind, Phase};

use super::VmActor;
use crate::launch::{self, MOST_LOST_EPOCHS};
use crate::vm::command::Command;
use crate::vm::shared::Shared;

/// Why a machine could not be taken up.
enum AdoptFailure {
    /// It is gone.
    Gone(String),
    /// It lives and may answer later.
    NotYet(String),
}

impl VmActor {
    /// Takes up a VM of an earlier server process.
    pub(super) async fn adopt(&mut self) {
        if !matches!(self.record.phase(), Phase::Creating | Phase::Deleting) {
            self.finish_files().await;
        }
        match self.record.phase() {
            Phase::Creating | Phase::Deleting => {
                tracing::info!(vm = %self.record.id, phase = %self.record.phase(), "undoing what a crash interrupted");
                self.discard().await;
            }
            Phase::Starting | Phase::Stopping => {
                self.end_machine_or_log().await;
                if self.record.life.asleep().is_none() {
                    self.write_back_or_log().await;
                }
                self.stopped_by_force().await;
            }
            Phase::Stopped | Phase::Hibernated | Phase::Failed => self.sweep_or_log().await,
            Phase::Running | Phase::Paused | Phase::Pooled => self.adopt_machine().await,
            Phase::Deleted => {}
        }
    }

    /// Its creation was reported, whatever its directory says: the last server may have died between the row and the mark in
    /// the directory, by which another one that does not know the row would take the VM for half made.
    async fn finish_files(&self) {
        if let Err(error) = self.shared.ports.vm_storage.finish_vm_files(&self.record.id).await {
            tracing::warn!(vm = %self.record.id, %error, "its directory cannot be marked as whole");
        }
    }

    /// Takes the machine up again. One that is gone fails the VM; one that lives and does not answer (a host under load
    /// after a restart) goes on, and is tried until it does.
    async fn adopt_machine(&mut self) {
        if let Err(reason) = self.take_up().await
            && matches!(self.record.phase(), Phase::Running | Phase::Paused | Phase::Pooled)
        {
            self.unreachable(reason);
            // Whoever waits for it has waited for this try.
            if let Some(unreachable) = &mut self.unreachable {
                unreachable.tried = true;
            }
            self.publish_now();
        }
    }

    /// Takes the machine and its agent up, or tells why not. A machine that is gone has failed the VM then.
    pub(super) async fn take_up(&mut self) -> Result<(), String> {
        match self.try_adopt().await {
            Ok(()) => {
                // The server died between the wake and the end of the sleep.
                let slept = self.record.life.give_up_sleep();
                self.not_unreachable();
                self.save_or_log(None).await;
                self.end_sleep(slept).await;
                Ok(())
            }
            Err(AdoptFailure::Gone(reason)) => {
                self.fail(reason.clone()).await;
                Err(reason)
            }
            Err(AdoptFailure::NotYet(reason)) => Err(reason),
        }
    }

    async fn try_adopt(&mut self) -> Result<(), AdoptFailure> {
        let machine = match self.machine.clone() {
            Some(machine) => machine,
            None => self.adopted_machine().await?,
        };
        let not_yet =
            |what: &str, error: &dyn std::fmt::Display| AdoptFailure::NotYet(format!("{what}: {error}"));
        // From here on its end is noticed, and a stop finds it.
        self.machine = Some(Arc::clone(&machine));
        // Of a record that an older server wrote: as early as can be.
        if let Err(error) = launch::fix_formats(&self.shared.ports, &mut self.record).await {
            tracing::warn!(vm = %self.record.id, %error, "the format of a disk is not known: the VM cannot be branched");
        }
        if self.record.phase() == Phase::Running && *machine.state().borrow() == MachineState::DiskFull {
            // It stopped while no server was there; its agent is reached when there is room.
            self.disk_is_full().await;
            return Ok(());
        }
        if self.record.phase() == Phase::Running {
            // The server may have died between the VMM's pause or resume and its own note of it.
            machine.resume().await.map_err(|error| not_yet("its machine does not resume", &error))?;
            let connected = self.connect_unless_ended(&machine).await;
            connected.map_err(|error| not_yet("its agent does not answer", &error))?;
        } else {
            machine.pause().await.map_err(|error| not_yet("its machine does not pause", &error))?;
        }
        Ok(())
    }

    /// Opens the channel, unless a stop or a delete comes first; other commands wait.
    async fn connect_unless_ended(&mut self, machine: &Arc<dyn Machine>) -> Result<(), GuestError> {
        let ending = self.shared.ending.clone();
        let opened = {
            let connect = connect_in_some_epoch(&self.shared, &self.record, machine);
            tokio::pin!(connect);
            loop {
                tokio::select! {
                    opened = &mut connect => break opened?,
                    () = ending.cancelled() => return Err(GuestError::Closed(CloseReason::Local)),
                    Some(order) = self.commands.recv() => {
                        let ends = matches!(order.command, Command::Stop { .. } | Command::Delete(_));
                        self.pending.push_back(order);
                        if ends {
                            return Err(GuestError::Closed(CloseReason::Local));
                        }
                    }
                }
            }
        };
        self.connected(opened.0, opened.1);
        Ok(())
    }

    async fn adopted_machine(&self) -> Result<Arc<dyn Machine>, AdoptFailure> {
        let record: MachineRecord = self
            .record
            .machine
            .clone()
            .and_then(|value| serde_json::from_value(value).ok())
            .ok_or_else(|| AdoptFailure::Gone("its machine was not recorded".to_owned()))?;
        let directory = self.shared.ports.vm_storage.vm_directory(&self.record.id);
        let adopted = self.shared.ports.hypervisor.adopt(&self.record.id, &directory, &record).await;
        adopted.map_err(|error| match error {
            LaunchError::Gone(_) | LaunchError::Died { .. } => {
                AdoptFailure::Gone(format!("its machine ended while the server was away: {error}"))
            }
            _ => AdoptFailure::NotYet(format!("its machine does not answer: {error}")),
        })
    }

    /// What this VM is told about itself, when it has run its start commands.
    pub(super) async fn own_identity(&self) -> Identity {
        match &self.config {
            Some(config) => launch::identity(&self.shared.ports, &self.record, config, Vec::new()),
            None => identity_of(&self.shared, &self.record).await,
        }
    }

    pub(super) async fn connect_again(&mut self, machine: &Arc<dyn Machine>) -> Result<(), GuestError> {
        let (guest, epoch) = connect_in_some_epoch(&self.shared, &self.record, machine).await?;
        self.connected(guest, epoch);
        Ok(())
    }

    /// Takes a channel that was opened.
    pub(super) fn connected(&mut self, guest: Arc<dyn Guest>, epoch: u64) {
        self.record.epoch = epoch;
        self.guest = Some(guest);
        self.reached();
    }
}

async fn identity_of(shared: &Shared, record: &VmRecord) -> Identity {
    // The image's variables matter for later commands; if it cannot be read now the template's own must do.
    let image = shared.ports.images.image(&record.image_digest).await;
    let config = image.map(|image| image.info.config).unwrap_or_default();
    launch::identity(&shared.ports, record, &config, Vec::new())
}

/// Opens the channel of a machine in an epoch that the guest has not seen. All tries together take no longer than the
/// deadline: a guest that refuses each of them late holds nobody up for longer.
pub(super) async fn connect_in_some_epoch(
    shared: &Shared,
    record: &VmRecord,
    machine: &Arc<dyn Machine>,
) -> Result<(Arc<dyn Guest>, u64), GuestError> {
    let after = shared.settings.adopt_deadline;
    let tries = async {
        let identity = identity_of(shared, record).await;
        let endpoint = machine.endpoint();
        for lost in 1..=u64::from(MOST_LOST_EPOCHS) + 1 {
            let epoch = record.epoch + lost;
            match shared.ports.connector.connect(&endpoint, epoch, &identity, after).await {
                Ok(guest) => return Ok((guest, epoch)),
                // A server that died, or gave up, between opening an epoch and storing its number.
                Err(GuestError::Refused { kind: ErrorKind::Conflict, .. })
                    if lost <= u64::from(MOST_LOST_EPOCHS) => {}
                Err(error) => return Err(error),
            }
        }
        Err(GuestError::Unreachable("it refuses every epoch".to_owned()))
    };
    let late = GuestError::Timeout { action: "take its channel up again", after };
    tokio::time::timeout(after, tries).await.unwrap_or(Err(late))
}
