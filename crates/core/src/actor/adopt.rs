//! Taking up VMs of an earlier server process.

use std::sync::Arc;
use std::time::Duration;

use microvm_ports::guest::Identity;
use microvm_ports::hypervisor::MachineRecord;
use microvm_ports::{GuestError, LaunchError, Machine};
use microvm_types::vm::Rest;
use microvm_types::{ErrorKind, Phase};

use super::{Command, VmActor};
use crate::start::{self, MOST_LOST_EPOCHS};

/// Rest between tries of taking up a machine that lives but does not answer yet.
const ADOPT_RETRY: Duration = Duration::from_secs(3);
/// Tries of taking up a machine.
const ADOPT_TRIES: u32 = 5;

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
        match self.record.phase {
            Phase::Creating | Phase::Deleting => {
                tracing::info!(vm = %self.record.id, phase = %self.record.phase, "undoing what a crash interrupted");
                self.discard().await;
            }
            Phase::Starting | Phase::Stopping => {
                self.end_machine(None).await;
                if self.record.rest.is_none() {
                    self.write_back_or_log().await;
                }
                self.stopped_by_force().await;
            }
            Phase::Stopped | Phase::Failed => self.sweep().await,
            Phase::Running | Phase::Paused => self.adopt_machine().await,
        }
    }

    /// Takes the machine up again. One that is gone fails the VM; one that lives and does not answer yet (a host under
    /// load after a restart) is tried again, unless a stop or a delete comes.
    async fn adopt_machine(&mut self) {
        for attempt in 1..=ADOPT_TRIES {
            let failure = match self.try_adopt().await {
                Ok(()) => {
                    // The server died between the wake and the end of the sleep.
                    let sleeps = matches!(self.record.rest, Some(Rest::Asleep { .. }));
                    let slept = if sleeps { self.record.rest.take() } else { None };
                    self.save_or_log(None).await;
                    return self.end_sleep(slept).await;
                }
                Err(failure) => failure,
            };
            let last = attempt == ADOPT_TRIES;
            match failure {
                AdoptFailure::Gone(reason) => return self.fail(reason).await,
                AdoptFailure::NotYet(reason) if last => return self.fail(reason).await,
                AdoptFailure::NotYet(reason) => {
                    tracing::warn!(vm = %self.record.id, attempt, reason, "could not be taken up yet");
                }
            }
            let rest = tokio::time::sleep(ADOPT_RETRY);
            tokio::pin!(rest);
            loop {
                tokio::select! {
                    () = &mut rest => break,
                    () = self.shared.ending.cancelled() => return,
                    Some(command) = self.commands.recv() => {
                        let ends = matches!(command, Command::Stop { .. } | Command::Delete(_));
                        self.pending.push_back(command);
                        if ends {
                            return;
                        }
                    }
                }
            }
        }
    }

    async fn try_adopt(&mut self) -> Result<(), AdoptFailure> {
        let record: MachineRecord = self
            .record
            .machine
            .clone()
            .and_then(|value| serde_json::from_value(value).ok())
            .ok_or_else(|| AdoptFailure::Gone("its machine was not recorded".to_owned()))?;
        let directory = self.shared.ports.vm_storage.vm_directory(&self.record.id);
        let adopted = self.shared.ports.hypervisor.adopt(&self.record.id, &directory, &record).await;
        let machine = adopted.map_err(|error| match error {
            LaunchError::Gone(_) | LaunchError::Died { .. } => {
                AdoptFailure::Gone(format!("its machine ended while the server was away: {error}"))
            }
            _ => AdoptFailure::NotYet(format!("its machine does not answer: {error}")),
        })?;
        let not_yet =
            |what: &str, error: &dyn std::fmt::Display| AdoptFailure::NotYet(format!("{what}: {error}"));
        if self.record.phase == Phase::Running {
            // The server may have died between the VMM's pause or resume and its own note of it.
            machine.resume().await.map_err(|error| not_yet("its machine does not resume", &error))?;
            self.connect_again(&machine)
                .await
                .map_err(|error| not_yet("its agent does not answer", &error))?;
        } else {
            machine.pause().await.map_err(|error| not_yet("its machine does not pause", &error))?;
        }
        self.machine = Some(machine);
        Ok(())
    }

    /// What this VM is told about itself, when it has run its start commands.
    pub(super) async fn own_identity(&self) -> Identity {
        let ports = &self.shared.ports;
        // The image's variables matter for later commands; if it cannot be read now the template's own must do.
        let image = ports.images.image(&self.record.image_digest).await;
        let config = image.map(|image| image.info.config).unwrap_or_default();
        start::identity(ports, &self.record, &config, Vec::new())
    }

    pub(super) async fn connect_again(&mut self, machine: &Arc<dyn Machine>) -> Result<(), GuestError> {
        let after = self.shared.settings.adopt_deadline;
        // All tries together: a guest that refuses each of them late holds nobody up for longer.
        let late = GuestError::Timeout { action: "take its channel up again", after };
        tokio::time::timeout(after, self.connect_in_some_epoch(machine)).await.unwrap_or(Err(late))
    }

    async fn connect_in_some_epoch(&mut self, machine: &Arc<dyn Machine>) -> Result<(), GuestError> {
        let identity = self.own_identity().await;
        let (endpoint, deadline) = (machine.endpoint(), self.shared.settings.adopt_deadline);
        for lost in 0..=MOST_LOST_EPOCHS {
            let epoch = self.record.epoch + 1;
            let connector = &self.shared.ports.connector;
            match connector.connect(&endpoint, epoch, &identity, deadline).await {
                Ok(guest) => {
                    self.record.epoch = epoch;
                    self.guest = Some(guest);
                    return Ok(());
                }
                // A server that died between opening an epoch and storing its number.
                Err(GuestError::Refused { kind: ErrorKind::Conflict, .. }) if lost < MOST_LOST_EPOCHS => {
                    self.record.epoch = epoch;
                }
                Err(error) => return Err(error),
            }
        }
        Err(GuestError::Unreachable("it refuses every epoch".to_owned()))
    }
}
