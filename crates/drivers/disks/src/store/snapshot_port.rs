//! The port for snapshots.

use async_trait::async_trait;
use camino::Utf8Path;
use microvm_ports::branch::DiskChange;
use microvm_ports::capabilities::MemoryShape;
use microvm_ports::snapshot::{
    BranchFiles, BranchSource, Damage, ImportLimits, SnapshotInfo, SnapshotStore, UserDisk, Verified,
};
use microvm_ports::storage::VmFiles;
use microvm_ports::{Progress, StorageError};
use microvm_types::{SnapshotId, VmId};

use super::Disks;
use crate::snapshots::{SourceHandle, Sweep};

#[async_trait]
impl SnapshotStore for Disks {
    async fn prepare_overlays(&self, vm: &VmId, own: &[UserDisk]) -> Result<Vec<DiskChange>, StorageError> {
        let (vm, own) = (vm.clone(), own.to_vec());
        self.blocking(move |inner, _| inner.tops.prepare_overlays(&vm, &own)).await
    }

    async fn note_flattened(&self, vm: &VmId, top: &Utf8Path) -> Result<(), StorageError> {
        let (vm, top) = (vm.clone(), top.file_name().unwrap_or_default().to_owned());
        self.blocking(move |inner, _| inner.tops.note_flattened(&vm, &top)).await
    }

    async fn write_snapshot(
        &self,
        id: &SnapshotId,
        files: BranchFiles,
        full: bool,
        progress: Progress,
    ) -> Result<SnapshotInfo, StorageError> {
        let id = id.clone();
        self.blocking(move |inner, cancel| inner.writer.write_snapshot(&id, &files, full, &cancel, &progress))
            .await
    }

    async fn fork_point(
        &self,
        files: BranchFiles,
        count: usize,
        load: MemoryShape,
    ) -> Result<BranchSource, StorageError> {
        self.blocking(move |inner, cancel| inner.children.fork_point(&files, count, load, &cancel)).await
    }

    async fn snapshot_source(
        &self,
        id: &SnapshotId,
        count: usize,
        load: MemoryShape,
    ) -> Result<BranchSource, StorageError> {
        let id = id.clone();
        self.blocking(move |inner, cancel| inner.children.snapshot_source(&id, count, load, &cancel)).await
    }

    async fn create_vm_files_from(&self, vm: &VmId, source: &BranchSource) -> Result<VmFiles, StorageError> {
        let (vm, source) = (vm.clone(), source.clone());
        self.blocking(move |inner, cancel| {
            inner.children.create_vm_from(&vm, SourceHandle::of(&source)?, &cancel)
        })
        .await
    }

    async fn reset_vm_files(&self, vm: &VmId, source: &BranchSource) -> Result<VmFiles, StorageError> {
        let (vm, source) = (vm.clone(), source.clone());
        self.blocking(move |inner, _| inner.children.reset_vm(&vm, SourceHandle::of(&source)?)).await
    }

    async fn snapshots(&self) -> Result<Vec<Result<SnapshotInfo, (SnapshotId, Damage)>>, StorageError> {
        self.blocking(|inner, _| inner.catalog.list_snapshots()).await
    }

    async fn verify_snapshot(&self, id: &SnapshotId, progress: Progress) -> Result<Verified, StorageError> {
        let id = id.clone();
        self.blocking(move |inner, cancel| {
            inner.records.or_unknown(&id, inner.catalog.verify_snapshot(&id, &cancel, &progress))
        })
        .await
    }

    async fn remove_snapshot(&self, id: &SnapshotId) -> Result<(), StorageError> {
        let id = id.clone();
        self.blocking(move |inner, _| inner.catalog.remove_snapshot(&id)).await
    }

    async fn absorb_snapshot(
        &self,
        id: &SnapshotId,
        progress: Progress,
    ) -> Result<Vec<SnapshotInfo>, StorageError> {
        let id = id.clone();
        self.blocking(move |inner, cancel| inner.writer.absorb_snapshot(&id, &cancel, &progress)).await
    }

    async fn export_snapshot(
        &self,
        id: &SnapshotId,
        to: &Utf8Path,
        progress: Progress,
    ) -> Result<u64, StorageError> {
        let (id, to) = (id.clone(), to.to_owned());
        self.blocking(move |inner, cancel| {
            inner.records.or_unknown(&id, inner.exchange.export_snapshot(&id, &to, &cancel, &progress))
        })
        .await
    }

    async fn import_snapshot(
        &self,
        id: &SnapshotId,
        from: &Utf8Path,
        limits: ImportLimits,
        progress: Progress,
    ) -> Result<SnapshotInfo, StorageError> {
        let (id, from) = (id.clone(), from.to_owned());
        self.blocking(move |inner, cancel| {
            inner.exchange.import_snapshot(&id, &from, limits, &cancel, &progress)
        })
        .await
    }

    async fn collect_snapshot_garbage(&self, keep_memory_bytes: u64) -> Result<u64, StorageError> {
        self.blocking(move |inner, cancel| {
            inner.catalog.collect_snapshots(keep_memory_bytes, Sweep::Remove, &cancel)
        })
        .await
    }

    async fn count_snapshot_garbage(&self, keep_memory_bytes: u64) -> Result<u64, StorageError> {
        self.blocking(move |inner, cancel| {
            inner.catalog.collect_snapshots(keep_memory_bytes, Sweep::Count, &cancel)
        })
        .await
    }
}
