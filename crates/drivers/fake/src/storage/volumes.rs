//! Named volumes: small files in a directory each.

use std::fs;

use async_trait::async_trait;
use camino::Utf8PathBuf;
use microvm_ports::VolumeStore;
use microvm_ports::storage::StorageError;
use microvm_types::volume::VolumeRecord;
use microvm_types::{Listed, Unreadable, VolumeId};

use super::store::{FakeStorage, io};
use crate::script::Operation;

/// Bytes of a disk without content.
const EMPTY: usize = 512;

impl FakeStorage {
    fn volume_path(&self, id: &VolumeId) -> Utf8PathBuf {
        self.shared.root.join("volumes").join(id.as_str())
    }
}

#[async_trait]
impl VolumeStore for FakeStorage {
    async fn create_volume(&self, record: &VolumeRecord) -> Result<(), StorageError> {
        let path = self.volume_path(&record.id);
        let verdict = self.ask(Operation::CreateVolume, &path).await?;
        fs::create_dir_all(&path).map_err(io("making", &path))?;
        let (disk, kept) = (path.join("disk.raw"), path.join("volume.json"));
        fs::write(&disk, [0; EMPTY]).map_err(io("writing", &disk))?;
        let text = serde_json::to_vec(record).unwrap_or_default();
        fs::write(&kept, text).map_err(io("writing", &kept))?;
        verdict.finish().await;
        Ok(())
    }

    async fn volumes(&self) -> Result<Listed<VolumeRecord>, StorageError> {
        let root = self.shared.root.join("volumes");
        let mut listed = Listed { found: Vec::new(), unreadable: Vec::new() };
        for entry in fs::read_dir(&root).into_iter().flatten().filter_map(Result::ok) {
            let name = entry.file_name().to_string_lossy().into_owned();
            let text = fs::read(entry.path().join("volume.json")).unwrap_or_default();
            match serde_json::from_slice(&text) {
                Ok(record) => listed.found.push(record),
                Err(error) => listed.unreadable.push(Unreadable::new(&name, error.to_string())),
            }
        }
        listed.found.sort_by(|one: &VolumeRecord, other| one.id.cmp(&other.id));
        Ok(listed)
    }

    async fn volume_usage(&self, _id: &VolumeId) -> Result<u64, StorageError> {
        Ok(EMPTY as u64)
    }

    async fn remove_volume(&self, id: &VolumeId) -> Result<(), StorageError> {
        let path = self.volume_path(id);
        match fs::remove_dir_all(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(io("removing", &path)(error)),
            _ => Ok(()),
        }
    }

    fn volume_disk(&self, id: &VolumeId) -> Utf8PathBuf {
        self.volume_path(id).join("disk.raw")
    }
}
