//! Steps of a save that are not the hypervisor driver's: input to the guest held back, disks frozen.

use std::sync::Arc;

use async_trait::async_trait;
use microvm_ports::branch::{DiskChange, InputProbe, PauseSteps};
use microvm_ports::snapshot::UserDisk;
use microvm_ports::{Guest, SnapshotStore, StorageError};
use microvm_types::VmId;

/// Steps for one save of one VM.
pub(super) struct Steps {
    pub(super) snapshots: Arc<dyn SnapshotStore>,
    pub(super) vm: VmId,
    /// Its writable disks that are files of the user's.
    pub(super) own: Vec<UserDisk>,
    pub(super) guest: Option<Arc<dyn Guest>>,
}

#[async_trait]
impl PauseSteps for Steps {
    async fn hold_input(&self) -> Option<InputProbe> {
        match &self.guest {
            Some(guest) => Some(guest.hold_input().await),
            None => None,
        }
    }

    async fn freeze_disks(&self) -> Result<Vec<DiskChange>, StorageError> {
        self.snapshots.prepare_overlays(&self.vm, &self.own).await
    }
}
