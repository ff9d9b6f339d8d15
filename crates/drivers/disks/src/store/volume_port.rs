//! The port for named volumes.

use async_trait::async_trait;
use camino::Utf8PathBuf;
use microvm_ports::{StorageError, VolumeStore};
use microvm_types::volume::VolumeRecord;
use microvm_types::{Listed, VolumeId};

use super::Disks;

#[async_trait]
impl VolumeStore for Disks {
    async fn create_volume(&self, record: &VolumeRecord) -> Result<(), StorageError> {
        let record = record.clone();
        self.blocking(move |inner, cancel| inner.volumes.create(&record, &cancel)).await
    }

    async fn volumes(&self) -> Result<Listed<VolumeRecord>, StorageError> {
        self.blocking(|inner, _| inner.volumes.list()).await
    }

    async fn volume_usage(&self, id: &VolumeId) -> Result<u64, StorageError> {
        let id = id.clone();
        self.blocking(move |inner, _| inner.volumes.usage(&id)).await
    }

    async fn remove_volume(&self, id: &VolumeId) -> Result<(), StorageError> {
        let id = id.clone();
        self.blocking(move |inner, _| inner.volumes.remove(&id)).await
    }

    fn volume_disk(&self, id: &VolumeId) -> Utf8PathBuf {
        self.0.volumes.disk(id)
    }
}
