//! Changes of name, labels, metadata and limits, in every phase.

use super::VmActor;
use crate::error::ServiceError;
use crate::launch::shares::check_whole;
use crate::vm::change::VmChange;

impl VmActor {
    /// Stored first, then true. If it cannot be stored nothing has changed.
    pub(super) async fn change(&mut self, change: VmChange) -> Result<(), ServiceError> {
        let journal = &mut self.vm.journal;
        // All changes or none: they are made on a copy, which replaces the record when it is stored.
        let mut record = journal.record.clone();
        change.apply(&mut record, journal.now_ms())?;
        // Refused now rather than when the limit passes, where nobody reads the refusal.
        if record.limits.hibernate_seconds.is_some() {
            check_whole(&record.template)?;
        }
        let (id, from, to) = (record.id.clone(), journal.record.name.clone(), record.name.clone());
        // Both names are its own until the change is stored: nobody can take the old one before, nor the new one meanwhile.
        journal.shared.registry.reserve_name(&id, &to)?;
        if let Err(error) = journal.replace(record).await {
            journal.shared.registry.rename(&id, &from);
            return Err(error);
        }
        journal.shared.registry.rename(&id, &to);
        // A limit that could not be carried out may be another one now.
        self.idle.look_again();
        Ok(())
    }
}
