//! Volumes that nobody was told of yet.

use std::sync::Arc;

use microvm_ports::storage::LostDisks;
use microvm_types::{VmId, VolumeRecord};
use tokio::task::JoinHandle;

use super::shared::Shared;
use super::volumes::remove_if;
use crate::error::ServiceError;

/// A volume of which nobody was told yet, in the hands of a creation that made it or found it so. It is removed when dropped before it
/// is kept: nobody knows that it exists. Another creation that has it in hand, too, removes it after this one, or keeps it; once somebody
/// was told of it, or a VM has come up with it, it stays.
pub(crate) struct MadeVolume {
    shared: Arc<Shared>,
    record: VolumeRecord,
    /// Path of its disk.
    disk: String,
    /// The VM that it is for, once there is one.
    pub(super) vm: Option<VmId>,
    is_done: bool,
}

impl MadeVolume {
    /// Holds the volume: no other creation removes it meanwhile.
    pub(super) fn of(shared: &Arc<Shared>, record: VolumeRecord, disk: &str) -> Self {
        shared.volumes.hold(disk);
        Self { shared: Arc::clone(shared), record, disk: disk.to_owned(), vm: None, is_done: false }
    }

    /// True if it has this disk.
    pub(super) fn is_of(&self, disk: &str) -> bool {
        self.disk == disk
    }

    /// Keeps the volume.
    pub(crate) fn keep(mut self) -> VolumeRecord {
        self.is_done = true;
        // Before it is let go.
        self.shared.volumes.note_told(&self.disk);
        self.shared.volumes.let_go(&self.disk);
        self.record.clone()
    }

    /// Its record.
    pub(crate) const fn record(&self) -> &VolumeRecord {
        &self.record
    }

    /// Removes the volume, and waits for that. A failure is only logged: the caller returns the error that made it give up.
    pub(crate) async fn give_up(mut self) {
        let _ = self.remove().await;
    }

    fn remove(&mut self) -> JoinHandle<()> {
        self.is_done = true;
        let (shared, record) = (Arc::clone(&self.shared), self.record.clone());
        let (disk, vm) = (self.disk.clone(), self.vm.clone());
        self.shared.actors.spawn(async move {
            // It has the volume until it is gone. Whoever dropped the creation has it deleted, too: two at once are fine.
            if let Some(Ok(handle)) = vm.as_ref().map(|id| shared.registry.by_id(id)) {
                let _ = handle.delete(LostDisks::GiveUpRemoved).await;
            }
            shared.volumes.let_go(&disk);
            let name = record.name.clone();
            let untold = || shared.volumes.is_untold(&disk);
            match remove_if(&shared, record, untold).await {
                // Whoever has it beside this creation goes on to the same choice.
                Err(ServiceError::VolumeHasVms { .. }) => return,
                Ok(()) | Err(ServiceError::UnknownVolume(_)) => {}
                Err(error) => {
                    tracing::warn!(volume = %name, %error, "a volume that was created for nothing could not be removed");
                }
            }
            shared.volumes.note_told(&disk);
        })
    }
}

impl Drop for MadeVolume {
    fn drop(&mut self) {
        if !self.is_done {
            // The task runs on without being awaited.
            drop(self.remove());
        }
    }
}
