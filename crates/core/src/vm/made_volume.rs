//! Volumes that nobody was told of yet.

use std::sync::Arc;

use microvm_ports::storage::LostDisks;
use microvm_types::{VmId, VolumeRecord};
use tokio::task::JoinHandle;

use super::shared::Shared;
use super::volumes::remove_if;
use crate::error::ServiceError;

/// A volume whose creation is not answered yet. It is removed when dropped before it is kept: nobody knows that
/// it exists. If another VM has used it by then, it stays.
pub(crate) struct MadeVolume {
    pub(super) shared: Arc<Shared>,
    pub(super) record: VolumeRecord,
    /// Path of its disk.
    pub(super) disk: String,
    /// The VM that it was created for, once there is one.
    pub(super) vm: Option<VmId>,
    pub(super) is_done: bool,
}

impl MadeVolume {
    /// Keeps the volume.
    pub(crate) fn keep(mut self) -> VolumeRecord {
        self.is_done = true;
        self.shared.volumes.note_told(&self.disk);
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
            let name = record.name.clone();
            let untold = || shared.volumes.is_untold(&disk, vm.as_ref());
            match remove_if(&shared, record, untold).await {
                Ok(()) | Err(ServiceError::VolumeHasVms { .. } | ServiceError::UnknownVolume(_)) => {}
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
