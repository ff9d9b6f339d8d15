//! The record of one VM and what is shown of it: the one door through which either changes.

use std::sync::Arc;

use microvm_ports::{Guest, Machine};
use microvm_types::lifecycle::{Admission, Denied, LifecycleEvent, Work, admit, permits};
use microvm_types::template::HookPoint;
use microvm_types::vm::{PlannedShutdown, Rest, VmRecord};
use microvm_types::{Life, Name, Phase, SnapshotId};
use tokio::sync::watch;

use super::shutdown;
use super::told::Told;
use crate::error::ServiceError;
use crate::events::{Cause, Event, What};
use crate::vm::hooks;
use crate::vm::shared::Shared;
use crate::vm::view::{Published, Unreachable};
use crate::vm::volumes;

/// One VM as its actor knows it, and the way to store, publish and tell each change.
pub(super) struct Journal {
    pub(super) shared: Arc<Shared>,
    pub(super) record: VmRecord,
    pub(super) machine: Option<Arc<dyn Machine>>,
    pub(super) guest: Option<Arc<dyn Guest>>,
    /// Set while the machine runs and the agent does not answer.
    pub(super) unreachable: Option<Unreachable>,
    /// Set while its machine ends only to begin again.
    pub(super) comes_back: bool,
    /// Cause of what the VM does now.
    pub(super) cause: Cause,
    /// The phase that was told last.
    told: Phase,
    /// Essence of the record that is kept in the VM's directory, or of what was stored before there was one.
    kept: Essence,
    /// Essence of a record that is stored, and that the VM's directory is still to get.
    owed: Option<Essence>,
    /// True if the directory has what was to be kept there last.
    pub(super) has_kept: bool,
    published: watch::Sender<Published>,
}

impl Journal {
    pub(super) fn new(
        shared: Arc<Shared>,
        record: VmRecord,
        published: watch::Sender<Published>,
        cause: Cause,
    ) -> Self {
        let (told, kept) = (record.phase(), Essence::of(&record));
        Self {
            shared,
            record,
            machine: None,
            guest: None,
            unreachable: None,
            comes_back: false,
            cause,
            told,
            kept,
            owed: None,
            has_kept: true,
            published,
        }
    }

    pub(super) const fn phase(&self) -> Phase {
        self.record.phase()
    }

    pub(super) fn now_ms(&self) -> i64 {
        self.shared.ports.clock.now_ms()
    }

    /// The machine, if the VM has one.
    pub(super) fn living(&self) -> Result<Arc<dyn Machine>, ServiceError> {
        self.machine.clone().ok_or_else(|| ServiceError::NotRunning(self.phase()))
    }

    /// True if a request is to be carried out now, false if it is so already.
    pub(super) fn admits(&self, event: LifecycleEvent) -> Result<bool, ServiceError> {
        Ok(matches!(admit(self.phase(), event)?, Admission::Do(_)))
    }

    /// Refuses `work` that the table does not permit now.
    pub(super) fn permits(&self, work: Work) -> Result<(), ServiceError> {
        permits(self.phase(), work).map_err(|denied| ServiceError::NotRunning(denied.phase))
    }

    /// True while the VM is paused because the host's disk is full.
    pub(super) fn waits_for_room(&self) -> bool {
        self.phase() == Phase::Paused && self.record.life.rest() == Some(&Rest::DiskFull)
    }

    /// Runs the hooks of one point.
    pub(super) async fn hook(&self, point: HookPoint) -> Result<(), ServiceError> {
        hooks::run(&self.shared.ports, &self.record, point).await
    }

    /// Stops expecting heartbeats of a guest whose machine is going to pause, or expects them again.
    pub(super) fn expect_heartbeats(&self, expected: bool) {
        if let Some(guest) = &self.guest {
            guest.expect_heartbeats(expected);
        }
    }

    /// Carries out a request: stored first, then true. If it cannot be stored nothing has changed.
    pub(super) async fn request(&mut self, event: LifecycleEvent) -> Result<(), ServiceError> {
        self.request_by(|life| life.apply(event)).await
    }

    /// As [`Journal::request`], for changes that carry more than an event.
    pub(super) async fn request_by(
        &mut self,
        change: impl FnOnce(&mut Life) -> Result<(), Denied>,
    ) -> Result<(), ServiceError> {
        request_record(self, |record| change(&mut record.life)).await
    }

    /// As [`request_record`], with `work` that is done while the record is stored: neither waits for the other. If
    /// either fails nothing has changed here; what is stored is for the caller to undo then. The copy in the VM's directory is
    /// owed: [`keep_owed`] comes before anything else is done with the VM.
    pub(super) async fn request_beside<T>(
        &mut self,
        change: impl FnOnce(&mut VmRecord) -> Result<(), Denied>,
        work: impl AsyncFnOnce(&Self, &VmRecord) -> Result<T, ServiceError>,
    ) -> Result<T, ServiceError> {
        let mut record = self.record.clone();
        change(&mut record)?;
        shutdown::forget_if_over(&mut record);
        record.failure = None;
        record.updated_ms = self.now_ms();
        // Counted on a copy: what cannot be stored must not count.
        let essence = self.count(&mut record);
        // Both to their end: half a write, or half a wake, is none.
        let (stored, done) = futures::join!(self.shared.ports.store.update_vm(&record), work(self, &record));
        let done = done?;
        // A failed write leaves `self` as it was; the row may be newer, which the next write mends.
        stored?;
        self.owed = Some(essence);
        self.record = record;
        if self.phase() != Phase::Running {
            // Only of a VM that runs an answer is missed.
            self.unreachable = None;
        }
        self.publish();
        self.tell(Told::NOTHING);
        Ok(done)
    }

    /// Takes a record over that differs in what people chose, not in its life: stored first, then true.
    pub(super) async fn replace(&mut self, mut record: VmRecord) -> Result<(), ServiceError> {
        record.updated_ms = self.now_ms();
        let essence = self.count(&mut record);
        self.shared.ports.store.update_vm(&record).await?;
        self.has_kept = self.keep_if_new(&record, &essence).await;
        self.kept = essence;
        self.record = record;
        self.publish();
        self.tell(Told::NOTHING);
        Ok(())
    }

    /// Notes a fact: true whether or not it can be stored.
    pub(super) async fn note(&mut self, event: LifecycleEvent, told: Told) {
        self.note_by(|life| life.apply(event), told).await;
    }

    /// As [`Journal::note`], for changes that carry more than an event.
    pub(super) async fn note_by(&mut self, change: impl FnOnce(&mut Life) -> Result<(), Denied>, told: Told) {
        if self.is_known(change) {
            let failed = self.phase() == Phase::Failed;
            self.record.failure = if failed { told.words.clone() } else { None };
            if let Some(stop) = told.last_stop(self.now_ms()) {
                self.record.last_stop = Some(stop);
            }
            shutdown::forget_if_over(&mut self.record);
            self.save_or_log(told).await;
        }
    }

    /// Notes a fact of a VM whose row goes next, or is gone.
    pub(super) fn note_unstored(&mut self, event: LifecycleEvent) {
        if self.is_known(|life| life.apply(event)) {
            self.publish();
            self.tell(Told::NOTHING);
        }
    }

    fn is_known(&mut self, change: impl FnOnce(&mut Life) -> Result<(), Denied>) -> bool {
        let outcome = change(&mut self.record.life);
        if let Err(denied) = &outcome {
            tracing::error!(vm = %self.record.id, %denied, "a fact that the table does not know");
        }
        outcome.is_ok()
    }

    /// Stores the record and shows it; a failure is logged.
    pub(super) async fn save_or_log(&mut self, told: Told) {
        if let Err(error) = self.save(told).await {
            tracing::error!(vm = %self.record.id, %error, "the record could not be stored, the next server may see an older one");
        }
    }

    /// Stores the record and shows it.
    pub(super) async fn save(&mut self, told: Told) -> Result<(), ServiceError> {
        self.record.updated_ms = self.now_ms();
        let mut record = self.record.clone();
        let essence = self.count(&mut record);
        // Kept also if the store fails: a number that was given out once must not be given out again.
        self.record.generation = record.generation;
        let saved = self.shared.ports.store.update_vm(&record).await;
        // Kept even if it could not be stored: it is so, and the next server believes what is newer.
        self.has_kept = self.keep_if_new(&record, &essence).await;
        self.kept = essence;
        self.publish();
        self.tell(told);
        Ok(saved?)
    }

    /// Counts a change after which an older record would do harm.
    fn count(&self, record: &mut VmRecord) -> Essence {
        let essence = Essence::of(record);
        if essence != self.kept {
            record.generation += 1;
        }
        essence
    }

    /// Keeps a record in the VM's directory if what matters of it is new. After the row: a directory that is newer than its
    /// row then surely tells of an older copy of the database. A failure is logged only: the row is newer then, and is
    /// believed.
    async fn keep_if_new(&self, record: &VmRecord, essence: &Essence) -> bool {
        if *essence == self.kept {
            return true;
        }
        let kept = self.shared.ports.vm_storage.keep_record(record).await;
        if let Err(error) = &kept {
            tracing::warn!(vm = %record.id, %error, "an older copy of the database would not be known by this VM's directory");
        }
        kept.is_ok()
    }

    /// Shows the VM as it is now.
    pub(super) fn publish(&self) {
        // First: who sees a VM at rest finds its volumes free.
        volumes::release_at_rest(&self.shared, &self.record);
        self.published.send_replace(Published {
            record: self.record.clone(),
            machine: self.machine.clone(),
            guest: self.guest.clone(),
            unreachable: self.unreachable.clone(),
            comes_back: self.comes_back,
            goes_to_disk: false,
        });
    }

    /// Gives the guest to nobody else, because the memory of the VM is going to be written to disk: who asks for it now waits for the
    /// next change.
    pub(super) fn hide_guest(&self) {
        self.published.send_modify(|now| {
            now.guest = None;
            now.goes_to_disk = true;
        });
    }

    /// Tells the phase.
    pub(super) fn tell(&mut self, told: Told) {
        let to = self.phase();
        // Of the phase that was told last, so that watchers see an unbroken chain.
        let from = std::mem::replace(&mut self.told, to);
        self.tell_what(What::Phase { from, to, reason: told.words, stop: told.stop });
    }

    /// Tells something that happened.
    pub(super) fn tell_what(&self, what: What) {
        self.shared.events.tell(Event {
            tenant: self.record.tenant.clone(),
            vm: self.record.id.clone(),
            name: self.record.name.clone(),
            cause: self.cause.clone(),
            what,
            at_ms: self.now_ms(),
        });
    }
}

/// As [`Journal::request`], for changes of the whole record.
pub(super) async fn request_record(
    journal: &mut Journal,
    change: impl FnOnce(&mut VmRecord) -> Result<(), Denied>,
) -> Result<(), ServiceError> {
    journal.request_beside(change, async |_, _| Ok(())).await?;
    keep_owed(journal).await;
    Ok(())
}

/// Keeps the copy that [`Journal::request_beside`] owes, if one is. A crash before it leaves the row the newer one, as with
/// every change.
pub(super) async fn keep_owed(journal: &mut Journal) {
    if let Some(essence) = journal.owed.take() {
        journal.has_kept = journal.keep_if_new(&journal.record, &essence).await;
        journal.kept = essence;
    }
}

/// Part of a record that must not be believed when it is old: by it a server ends machines, puts disks back or hands VMs out.
#[derive(Debug, PartialEq, Eq)]
struct Essence {
    made: bool,
    machine: Option<serde_json::Value>,
    asleep: Option<SnapshotId>,
    waits_in_pool: bool,
    is_pooled: bool,
    name: Name,
    planned_shutdown: Option<PlannedShutdown>,
}

impl Essence {
    fn of(record: &VmRecord) -> Self {
        Self {
            made: !matches!(record.phase(), Phase::Creating),
            machine: record.machine.clone(),
            asleep: record.life.asleep().cloned(),
            waits_in_pool: record.is_pools(),
            is_pooled: record.phase() == Phase::Pooled,
            name: record.name.clone(),
            planned_shutdown: record.planned_shutdown,
        }
    }
}
