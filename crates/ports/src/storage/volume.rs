//! Named volumes.

use async_trait::async_trait;
use camino::Utf8PathBuf;
use microvm_types::volume::VolumeRecord;
use microvm_types::{Listed, VolumeId};

use super::error::StorageError;

/// Named volumes: raw disks, each with an empty ext4 at first, that belong to no VM.
#[async_trait]
pub trait VolumeStore: Send + Sync {
    /// Makes a volume with an empty file system, or nothing at all, also after a crash or if the future is dropped.
    ///
    /// # Errors
    /// [`StorageError::BadInput`] for a size that cannot be; [`StorageError::DiskFull`] and others.
    async fn create_volume(&self, record: &VolumeRecord) -> Result<(), StorageError>;

    /// All volumes in order of creation; those that cannot be read beside them.
    async fn volumes(&self) -> Result<Listed<VolumeRecord>, StorageError>;

    /// Bytes that a volume takes on the disk of the host.
    async fn volume_usage(&self, id: &VolumeId) -> Result<u64, StorageError>;

    /// Removes a volume that no VM uses, with all that is on it; nothing there is fine.
    async fn remove_volume(&self, id: &VolumeId) -> Result<(), StorageError>;

    /// Path of the raw disk of a volume, which need not exist.
    fn volume_disk(&self, id: &VolumeId) -> Utf8PathBuf;
}
