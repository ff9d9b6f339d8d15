//! The way to a VM's agent. One that does not answer is tried until it does, and its machine is left alone meanwhile.
//!
//! A silent agent proves nothing about the guest's work: the host may be overloaded, the agent may be stopped, a hostile
//! guest may speak nonsense. Only a machine that has ended, or its owner, ends a VM.

use std::sync::Arc;
use std::time::Duration;

use microvm_ports::guest::{CloseReason, Identity};
use microvm_ports::storage::ImageConfig;
use microvm_ports::waiting::within;
use microvm_ports::{Clock, Guest, GuestError, Machine};
use microvm_types::ErrorKind;
use microvm_types::lifecycle::Work;
use microvm_types::vm::VmRecord;

use super::inbox::Inbox;
use super::journal::Journal;
use super::retries::Retries;
use super::told::Told;
use crate::error::ServiceError;
use crate::launch::{self, MOST_LOST_EPOCHS};
use crate::vm::command::Command;
use crate::vm::shared::Shared;
use crate::vm::view::Unreachable;

impl Unreachable {
    /// The error for whoever needs the agent.
    pub(crate) fn error(self, vm: &microvm_types::Name, now_ms: i64) -> ServiceError {
        let seconds = now_ms.saturating_sub(self.since_ms).max(0) / 1_000;
        ServiceError::Unreachable { vm: vm.clone(), seconds, reason: self.reason }
    }
}

/// Tries to reach the agent, and what is needed to tell it who it is.
pub(super) struct Reach {
    retries: Retries,
    /// Configuration of programs in the VM's image; `None` until this server has asked.
    config: Option<ImageConfig>,
}

impl Reach {
    pub(super) fn new(clock: &Arc<dyn Clock>) -> Self {
        Self { retries: Retries::new(clock), config: None }
    }

    /// Takes what the image says about running programs in it.
    pub(super) fn learn(&mut self, config: ImageConfig) {
        self.config = Some(config);
    }

    /// Notes that the agent does not answer, and plans the next try.
    pub(super) fn lost(&mut self, journal: &mut Journal, reason: String) {
        tracing::warn!(vm = %journal.record.id, reason, "the agent does not answer, its machine goes on");
        if let Some(guest) = journal.guest.take() {
            guest.close();
        }
        // The first try is due at once: most losses are a server or a host that was busy for a moment.
        self.retries.lost();
        let told = format!("unreachable: {reason}");
        journal.unreachable = Some(Unreachable { since_ms: journal.now_ms(), reason, tried: false });
        journal.publish();
        journal.tell(Told::words(told));
    }

    /// Notes a try that failed, and plans the next one. After the first one nobody waits for the agent any more.
    pub(super) fn missed(&mut self, journal: &mut Journal, reason: &str) {
        // It may have ended in the try.
        let Some(unreachable) = &mut journal.unreachable else { return };
        let first = !std::mem::replace(&mut unreachable.tried, true);
        self.retries.plan();
        if first {
            tracing::warn!(vm = %journal.record.id, reason, "the agent could not be reached again, it is tried on");
            journal.publish();
        }
    }

    /// Notes that nothing is missing any more, or that there is nothing to be missed.
    pub(super) fn settled(&mut self, journal: &mut Journal) {
        journal.unreachable = None;
        self.retries.cancel();
    }

    /// Notes that the channel is open.
    pub(super) fn reached(&mut self, journal: &mut Journal) {
        self.settled(journal);
        self.retries.holds();
    }

    /// Ends when the next try is due; never if none is planned.
    pub(super) fn due(&self) -> impl Future<Output = ()> + Send + use<> {
        self.retries.due()
    }

    /// Opens the channel of a machine that runs.
    pub(super) async fn connect(
        &mut self,
        journal: &mut Journal,
        machine: &Arc<dyn Machine>,
    ) -> Result<(), GuestError> {
        let (guest, epoch) = connect_in_some_epoch(&journal.shared, &journal.record, machine).await?;
        self.connected(journal, guest, epoch);
        Ok(())
    }

    /// As [`Reach::connect`], unless a stop or a delete comes first; other orders wait.
    pub(super) async fn connect_unless_ended(
        &mut self,
        journal: &mut Journal,
        inbox: &mut Inbox,
        machine: &Arc<dyn Machine>,
    ) -> Result<(), GuestError> {
        let ends = |command: &Command| {
            matches!(command, Command::Stop { .. } | Command::Delete { .. }).then_some(())
        };
        let connect = connect_in_some_epoch(&journal.shared, &journal.record, machine);
        let opened = inbox.unless(&journal.shared.ending, ends, connect).await;
        let (guest, epoch) = opened.unwrap_or(Err(GuestError::Closed(CloseReason::Local)))?;
        self.connected(journal, guest, epoch);
        Ok(())
    }

    /// Takes a channel that was opened.
    pub(super) fn connected(&mut self, journal: &mut Journal, guest: Arc<dyn Guest>, epoch: u64) {
        journal.record.epoch = epoch;
        // Published by the next save of the caller, together with the epoch.
        journal.guest = Some(guest);
        self.reached(journal);
    }

    /// Before a stop: an agent that answers after all can sync its disks.
    pub(super) async fn try_before_stop(&mut self, journal: &mut Journal, grace: Duration) {
        if let (None, Some(machine)) = (&journal.guest, journal.machine.clone()) {
            let id = journal.record.id.clone();
            let outcome = within(grace, self.connect(journal, &machine)).await;
            tracing::info!(vm = %id, reached = matches!(outcome, Ok(Ok(()))), "tried the agent once more before the stop");
        }
    }

    /// Identity of a VM that has run its start commands.
    pub(super) async fn identity(&self, shared: &Shared, record: &VmRecord) -> Identity {
        match &self.config {
            Some(config) => launch::identity(&shared.ports, record, config, Vec::new()),
            None => identity_of(shared, record).await,
        }
    }

    /// Gives a running VM its identity once more, in another epoch.
    pub(super) async fn identify_again(&self, journal: &mut Journal) -> Result<(), ServiceError> {
        journal.permits(Work::Rehearse)?;
        let guest = journal.guest.clone().ok_or(GuestError::Closed(CloseReason::Local))?;
        journal.record.epoch += 1;
        let identity = self.identity(&journal.shared, &journal.record).await;
        Ok(guest.identify(journal.record.epoch, &identity).await?)
    }

    /// Tells a guest that was paused the time. One that cannot be told goes on with the old time, and the log says so.
    pub(super) async fn tell_time(&self, journal: &mut Journal) {
        let (Some(guest), Some(machine)) = (journal.guest.clone(), journal.machine.clone()) else { return };
        let answer = tokio::select! {
            biased;
            // Stopped again at once: it is told when it goes on for good.
            () = launch::disk_full(machine.state()) => return,
            answer = guest.tell_time() => answer,
        };
        let told = match answer {
            // An older agent takes the time only with an identity.
            Err(GuestError::Refused { kind: ErrorKind::Unsupported, .. }) => {
                self.identify_again(journal).await
            }
            told => told.map_err(ServiceError::from),
        };
        if let Err(error) = told {
            tracing::warn!(vm = %journal.record.id, %error, "the guest's clock is late by the time it was paused");
        }
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
        // Inside of the deadline: an image store that hangs must not hold up the actor of this VM.
        let identity = identity_of(shared, record).await;
        let endpoint = machine.endpoint();
        for lost in 1..=u64::from(MOST_LOST_EPOCHS) + 1 {
            // An agent refuses epochs that it has seen; each refusal costs one round trip.
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
    within(after, tries).await.unwrap_or(Err(late))
}
