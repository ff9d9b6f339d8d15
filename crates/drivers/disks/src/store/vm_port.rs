//! The port for files of VMs.

use async_trait::async_trait;
use camino::{Utf8Path, Utf8PathBuf};
use microvm_durable::error::bad_input;
use microvm_durable::files::{canonical, disk_usage};
use microvm_durable::workspace::remove_leftovers;
use microvm_ports::storage::{DiskFormat, LostDisks, Space, VmFiles};
use microvm_ports::{StorageError, VmStorage};
use microvm_types::VmId;
use microvm_types::vm::VmRecord;

use super::Disks;
use crate::vms::manifest::DiskManifest;
use crate::vms::{disks, folders};

#[async_trait]
impl VmStorage for Disks {
    async fn create_vm_files(&self, id: &VmId, disk_mib: u32) -> Result<VmFiles, StorageError> {
        let id = id.clone();
        self.blocking(move |inner, cancel| {
            let base = inner.scratch.scratch_base(disk_mib, &cancel)?;
            let disk = DiskManifest::new(disk_mib, base.file_name().unwrap_or_default().to_owned());
            inner.vms.create_vm(&id, &disk, &cancel)
        })
        .await
    }

    async fn reserve_vm_directory(&self, id: &VmId) -> Result<Utf8PathBuf, StorageError> {
        let id = id.clone();
        self.blocking(move |inner, cancel| inner.vms.reserve(&id, &cancel)).await
    }

    async fn finish_vm_files(&self, id: &VmId) -> Result<(), StorageError> {
        let id = id.clone();
        self.blocking(move |inner, _| inner.vms.finish(&id)).await
    }

    async fn is_unfinished(&self, id: &VmId) -> Result<bool, StorageError> {
        let id = id.clone();
        self.blocking(move |inner, _| inner.vms.is_unfinished(&id)).await
    }

    async fn keep_record(&self, record: &VmRecord) -> Result<(), StorageError> {
        let record = record.clone();
        self.blocking(move |inner, _| inner.vms.keep_record(&record)).await
    }

    async fn kept_record(&self, id: &VmId) -> Result<Option<VmRecord>, StorageError> {
        let id = id.clone();
        self.blocking(move |inner, _| inner.vms.kept_record(&id)).await
    }

    async fn vm_files(&self, id: &VmId) -> Result<VmFiles, StorageError> {
        let id = id.clone();
        self.blocking(move |inner, _| inner.vms.find(&id)).await
    }

    async fn remove_vm_files(&self, id: &VmId) -> Result<(), StorageError> {
        let id = id.clone();
        self.blocking(move |inner, _| inner.vms.remove(&id)).await
    }

    async fn write_back(&self, id: &VmId, lost: LostDisks) -> Result<(), StorageError> {
        let id = id.clone();
        self.blocking(move |inner, cancel| inner.tops.write_back(&id, lost, &cancel)).await
    }

    async fn vm_directories(&self) -> Result<Vec<VmId>, StorageError> {
        self.blocking(|inner, _| {
            remove_leftovers(&inner.ground.directories.work)?;
            inner.vms.ids()
        })
        .await
    }

    fn vm_directory(&self, id: &VmId) -> Utf8PathBuf {
        self.0.ground.vm_path(id)
    }

    async fn zero_memory(&self, memory_mib: u32) -> Result<Utf8PathBuf, StorageError> {
        self.blocking(move |inner, _| inner.memories.zero_memory_file(memory_mib)).await
    }

    async fn inspect_disk(
        &self,
        path: &Utf8Path,
        known: Option<DiskFormat>,
    ) -> Result<DiskFormat, StorageError> {
        let path = path.to_owned();
        self.blocking(move |_, _| disks::inspect(&path, known)).await
    }

    async fn real_disk_path(&self, path: &Utf8Path) -> Result<Utf8PathBuf, StorageError> {
        let path = path.to_owned();
        self.blocking(move |inner, _| {
            disks::open(&path)?;
            let real = canonical(&path)?;
            // Disks, memory and volumes of all VMs are below it, each in a folder, and the database beside these.
            if let Ok(rest) = real.strip_prefix(inner.ground.directories.root())
                && (rest.components().count() > 1 || rest.as_str().contains(".sqlite"))
            {
                let detail = "it belongs to the server's own files: use a disk outside of them, or a volume by its name";
                return Err(bad_input(format!("the disk `{path}`"), detail));
            }
            Ok(real)
        })
        .await
    }

    async fn inspect_folder(&self, path: &Utf8Path) -> Result<Utf8PathBuf, StorageError> {
        let path = path.to_owned();
        self.blocking(move |inner, _| folders::inspect(&path, inner.ground.directories.root())).await
    }

    async fn space(&self) -> Result<Space, StorageError> {
        let path = self.0.ground.directories.vms.clone();
        self.blocking(move |inner, _| inner.ground.room.space(&path)).await
    }

    async fn vm_disk_usage(&self, id: &VmId) -> Result<u64, StorageError> {
        let directory = self.0.ground.vm_path(id);
        self.blocking(move |_, _| disk_usage(&directory)).await
    }
}
