//! The record of a VM: storing and showing it.

use microvm_types::lifecycle::{Denied, LifecycleEvent};
use microvm_types::{Life, Phase};

use super::VmActor;
use crate::error::ServiceError;
use crate::events::{Event, What};
use crate::vm::view::Published;

impl VmActor {
    /// Carries out a request: stored first, then true. If it cannot be stored nothing has changed.
    pub(super) async fn request(&mut self, event: LifecycleEvent) -> Result<(), ServiceError> {
        self.request_by(|life| life.apply(event)).await
    }

    /// As [`VmActor::request`], for changes that carry more than an event.
    pub(super) async fn request_by(
        &mut self,
        change: impl FnOnce(&mut Life) -> Result<(), Denied>,
    ) -> Result<(), ServiceError> {
        let mut record = self.record.clone();
        change(&mut record.life)?;
        record.failure = None;
        record.updated_ms = self.shared.ports.clock.now_ms();
        self.shared.ports.store.update_vm(&record).await?;
        self.record = record;
        if self.record.phase() != Phase::Running {
            // Only of a VM that runs an answer is missed.
            self.not_unreachable();
        }
        self.publish_now();
        self.tell(None);
        Ok(())
    }

    /// Notes a fact: true whether or not it can be stored.
    pub(super) async fn note(&mut self, event: LifecycleEvent, reason: Option<String>) {
        self.note_by(|life| life.apply(event), reason).await;
    }

    /// As [`VmActor::note`], for changes that carry more than an event.
    pub(super) async fn note_by(
        &mut self,
        change: impl FnOnce(&mut Life) -> Result<(), Denied>,
        reason: Option<String>,
    ) {
        match change(&mut self.record.life) {
            Ok(()) => {
                let failed = self.record.phase() == Phase::Failed;
                self.record.failure = if failed { reason.clone() } else { None };
                self.save_or_log(reason).await;
            }
            Err(denied) => {
                tracing::error!(vm = %self.record.id, %denied, "a fact that the table does not know")
            }
        }
    }

    pub(super) async fn save_or_log(&mut self, reason: Option<String>) {
        if let Err(error) = self.save(reason).await {
            tracing::error!(vm = %self.record.id, %error, "the record could not be stored, the next server may see an older one");
        }
    }

    /// Writes the record and shows it.
    pub(super) async fn save(&mut self, reason: Option<String>) -> Result<(), ServiceError> {
        self.record.updated_ms = self.shared.ports.clock.now_ms();
        let saved = self.shared.ports.store.update_vm(&self.record).await;
        self.publish_now();
        self.tell(reason);
        Ok(saved?)
    }

    pub(super) fn publish_now(&self) {
        self.publish.send_replace(Published {
            record: self.record.clone(),
            machine: self.machine.clone(),
            guest: self.guest.clone(),
            unreachable: self.unreachable.clone(),
        });
    }

    /// Tells the phase.
    pub(super) fn tell(&mut self, reason: Option<String>) {
        let to = self.record.phase();
        let from = std::mem::replace(&mut self.told, to);
        self.tell_what(What::Phase { from, to, reason });
    }

    pub(super) fn tell_what(&self, what: What) {
        self.shared.events.tell(Event {
            tenant: self.record.tenant.clone(),
            vm: self.record.id.clone(),
            name: self.record.name.clone(),
            cause: self.cause.clone(),
            what,
            at_ms: self.shared.ports.clock.now_ms(),
        });
    }
}
