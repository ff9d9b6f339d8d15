//! Snapshots and fork points: saved machine states on the host's disks.
//!
//! ```text
//!  memory of a snapshot = memory of its parent (or zeros) + packed pages that differ
//!  disk of a snapshot   = frozen layers, newest first, over the empty disk they began with
//!
//!  prepare_overlays ─▶ Brancher::branch ─┬▶ write_snapshot   durable: manifest, checksums, parent
//!                                         └▶ fork_point       for children that are launched at once
//!  snapshot_source / fork_point ─▶ BranchSource ─▶ create_vm_files_from ─▶ launch (incoming)
//! ```
//!
//! Frozen layers and memory bases are shared by whoever names them, and removed when nobody does: deleting VMs and
//! snapshots in any order never breaks another.

use std::sync::Arc;

use async_trait::async_trait;
use camino::{Utf8Path, Utf8PathBuf};
use microvm_types::{SnapshotId, VmId};
use serde::{Deserialize, Serialize};

use crate::branch::{Branch, Compatibility, DiskChange, StateMemory};
use crate::capabilities::MemoryShape;
use crate::progress::Progress;
use crate::state_parts::StateParts;
use crate::storage::{StorageError, VmFiles};

/// Description of a saved state, beside its files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StateDescription {
    /// Memory in MiB.
    pub memory_mib: u32,
    /// Scratch disk in MiB.
    pub disk_mib: u32,
    /// Form in which its memory was saved. A memory inside the VMM's state can be loaded as that only; others are given in
    /// the form that is asked for. Snapshots of earlier versions do not tell.
    #[serde(default, skip_serializing_if = "MemoryShape::is_usual")]
    pub memory: MemoryShape,
    /// Needs of a machine that loads it.
    pub compatibility: Compatibility,
    /// Core's own description, as JSON; travels with an export and is opaque to storage.
    pub record: serde_json::Value,
}

/// A writable disk that belongs to the user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UserDisk {
    /// Serial number of the disk.
    pub serial: String,
    /// The user's file, which is raw. While the VM has branches its writes go elsewhere; [`crate::VmStorage::write_back`] brings them.
    pub path: Utf8PathBuf,
}

/// A branch to be kept. Its VM was prepared by [`SnapshotStore::prepare_overlays`] before it was branched.
#[derive(Debug, Clone)]
pub struct BranchFiles {
    /// The VM that was branched.
    pub vm: VmId,
    /// Its state. What is below its new layers, which [`SnapshotStore::prepare_overlays`] made, is its disk, also when the VM was
    /// prepared and branched again since.
    pub branch: Branch,
    /// Description of the state.
    pub description: StateDescription,
}

/// A durable snapshot as it is on disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotInfo {
    /// Its id.
    pub id: SnapshotId,
    /// The snapshot its memory builds on; `None`: it is whole in itself.
    pub parent: Option<SnapshotId>,
    /// Description of the state.
    pub description: StateDescription,
    /// Bytes of memory that differ from the parent.
    pub memory_bytes: u64,
    /// Bytes on disk that would be freed with it: its own pages, device state and layers that nobody else names.
    pub own_bytes: u64,
    /// SHA-256 over its manifest, which holds the SHA-256 of each part: equal means equal in every byte.
    pub sha256: String,
}

/// A part of a snapshot that is not what was written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Damage {
    /// The damaged part: `manifest`, `device-state`, `state/<part>`, `memory`, `disk/<layer>` or `parent`.
    pub part: String,
    /// First byte of the file that is wrong or missing, as far as it can be told.
    pub first_byte: u64,
    /// The byte after the last one of the damaged range.
    pub end_byte: u64,
    /// Expected and found content.
    pub detail: String,
}

impl Damage {
    /// The error of a snapshot with this damage.
    #[must_use]
    pub fn of(&self, id: &SnapshotId) -> StorageError {
        StorageError::Damaged {
            what: format!("snapshot {id}"),
            detail: format!("{}, bytes {} to {}: {}", self.part, self.first_byte, self.end_byte, self.detail),
        }
    }
}

/// Result of reading every byte of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verified {
    /// Everything that is wrong; empty if nothing is.
    pub damage: Vec<Damage>,
    /// [`SnapshotInfo::sha256`] as it was read for this; `None` if the manifest cannot be read.
    pub stored_sha256: Option<String>,
    /// SHA-256 as [`SnapshotInfo::sha256`], over the content that is there now: it is that one if every part is as it was
    /// written (parents not included). A part that is missing counts as empty. Of a manifest that cannot be read: over its bytes.
    pub current_sha256: String,
}

/// Everything needed to launch machines from one state. While a clone of it lives its files stay.
#[derive(Clone)]
pub struct BranchSource {
    /// Description of the state.
    pub description: StateDescription,
    /// Everything but memory and disks.
    pub parts: StateParts,
    /// Its memory, in the form that was asked for.
    pub memory: StateMemory,
    /// The driver's own data, and what keeps the files.
    pub handle: Arc<dyn std::any::Any + Send + Sync>,
}

impl std::fmt::Debug for BranchSource {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("BranchSource").field("memory", &self.memory).finish_non_exhaustive()
    }
}

/// Limits of an imported snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ImportLimits {
    /// Memory of its VM in MiB.
    pub memory_mib: u32,
    /// Scratch disk of its VM in MiB.
    pub disk_mib: u32,
}

impl Default for ImportLimits {
    /// None but those of the format.
    fn default() -> Self {
        Self { memory_mib: u32::MAX, disk_mib: u32::MAX }
    }
}

/// Keeps saved states. A snapshot is there whole or not at all.
#[async_trait]
pub trait SnapshotStore: Send + Sync {
    /// Makes a new empty overlay for every writable disk of a VM, and notes durably that the old ones lie below it. Harmless
    /// if the branch is never made: an empty overlay shows what is below. `own`: the VM's writable disks that are files of
    /// the user's; a disk that is the VM's own copy already is known without.
    ///
    /// # Errors
    /// [`StorageError::BadInput`] for a disk of the user's that cannot be branched.
    async fn prepare_overlays(&self, vm: &VmId, own: &[UserDisk]) -> Result<Vec<DiskChange>, StorageError>;

    /// Notes that the overlay of a VM's disk holds everything that the layers below it did: they are not the VM's any more. `overlay`
    /// was the current one when [`crate::branch::Flattener::flatten`] began.
    async fn note_flattened(&self, vm: &VmId, overlay: &Utf8Path) -> Result<(), StorageError>;

    /// Keeps a branch as a durable snapshot. Only what differs from `parent` is written; with `full`, or if the VM's
    /// memory does not stem from `parent`, or if that is gone, it is whole in itself. If the future is dropped
    /// nothing is left behind.
    ///
    /// # Errors
    /// [`StorageError::DiskFull`] and others; nothing is listed then.
    async fn write_snapshot(
        &self,
        id: &SnapshotId,
        files: BranchFiles,
        full: bool,
        progress: Progress,
    ) -> Result<SnapshotInfo, StorageError>;

    /// Makes a branch ready to launch `count` machines from it at once, without keeping it. `load`: the form of memory that
    /// they are launched with. A file that its memory was saved to is removed, unless the machine has ended with the save
    /// ([`Branch::ended`](crate::branch::Branch::ended)): the state is then used once more after the machine itself goes on
    /// from it.
    ///
    /// # Errors
    /// [`StorageError::BadInput`] for a memory that cannot be given in that form.
    async fn fork_point(
        &self,
        files: BranchFiles,
        count: usize,
        load: MemoryShape,
    ) -> Result<BranchSource, StorageError>;

    /// Makes a snapshot ready to launch `count` machines from it. Parts are verified at their first use and after they
    /// were changed.
    ///
    /// # Errors
    /// [`StorageError::UnknownSnapshot`], [`StorageError::Damaged`] with part and byte range; [`StorageError::BadInput`] for a
    /// memory that cannot be given in the form `load`.
    async fn snapshot_source(
        &self,
        id: &SnapshotId,
        count: usize,
        load: MemoryShape,
    ) -> Result<BranchSource, StorageError>;

    /// Makes the directory and disks of a new VM over a state, or nothing at all.
    async fn create_vm_files_from(&self, vm: &VmId, source: &BranchSource) -> Result<VmFiles, StorageError>;

    /// Puts a VM without a machine back on a state: what it wrote since is gone.
    async fn reset_vm_files(&self, vm: &VmId, source: &BranchSource) -> Result<VmFiles, StorageError>;

    /// All snapshots, oldest first; leftovers of interrupted work are removed on the way. One that cannot be read is
    /// reported with its damage.
    async fn snapshots(&self) -> Result<Vec<Result<SnapshotInfo, (SnapshotId, Damage)>>, StorageError>;

    /// Reads every byte of a snapshot (parents not included).
    async fn verify_snapshot(&self, id: &SnapshotId, progress: Progress) -> Result<Verified, StorageError>;

    /// Reads every byte of every snapshot; every finding as a sentence, none if nothing is wrong.
    async fn verify_snapshots(&self, progress: Progress) -> Result<Vec<String>, StorageError> {
        let mut findings = Vec::new();
        for snapshot in self.snapshots().await? {
            let id = snapshot.map_or_else(|(id, _)| id, |info| info.id);
            match self.verify_snapshot(&id, progress.clone()).await {
                Ok(found) => findings.extend(found.damage.iter().map(|damage| damage.of(&id).to_string())),
                // Removed meanwhile.
                Err(StorageError::UnknownSnapshot(_)) => {}
                Err(error) => findings.push(format!("snapshot {id}: {error}")),
            }
        }
        Ok(findings)
    }

    /// Removes a snapshot; nothing there is fine. It vanishes first from sight.
    ///
    /// # Errors
    /// [`StorageError::InUse`] if others build on it.
    async fn remove_snapshot(&self, id: &SnapshotId) -> Result<(), StorageError>;

    /// Removes a snapshot also if others build on it: what they need of it is written into them first, one after the other.
    /// Returns those that changed. If it fails half-way those done are independent of it and it is still there.
    async fn absorb_snapshot(
        &self,
        id: &SnapshotId,
        progress: Progress,
    ) -> Result<Vec<SnapshotInfo>, StorageError>;

    /// Writes a snapshot, whole in itself, as one compressed file that [`SnapshotStore::import_snapshot`] reads on
    /// another host. If the future is dropped nothing is left behind.
    async fn export_snapshot(
        &self,
        id: &SnapshotId,
        to: &Utf8Path,
        progress: Progress,
    ) -> Result<u64, StorageError>;

    /// Takes in what [`SnapshotStore::export_snapshot`] wrote, under a new id. The file is untrusted: what it declares is
    /// held against `limits` and the free space before anything is written, no more is written than it declares, every
    /// part is verified, nothing outside the store is touched.
    async fn import_snapshot(
        &self,
        id: &SnapshotId,
        from: &Utf8Path,
        limits: ImportLimits,
        progress: Progress,
    ) -> Result<SnapshotInfo, StorageError>;

    /// Removes layers and memory files that nobody names, and memory files of snapshots that were not used for a while
    /// beyond `keep_memory_bytes`; returns the bytes freed.
    async fn collect_snapshot_garbage(&self, keep_memory_bytes: u64) -> Result<u64, StorageError>;

    /// Bytes that [`SnapshotStore::collect_snapshot_garbage`] would free now; nothing is removed.
    async fn count_snapshot_garbage(&self, keep_memory_bytes: u64) -> Result<u64, StorageError>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_description_of_an_earlier_version_is_read_and_written_as_ever() {
        // How the kernel found its devices was told beside the machine type, which tells it, too.
        let text = r#"{"memory_mib":256,"disk_mib":1024,"discovery":"command_line","compatibility":{"VMM":"QEMU 7.2"},"record":null}"#;
        let read: StateDescription = serde_json::from_str(text).unwrap();
        assert_eq!(read.memory, MemoryShape::PagesOverBase);
        let written = serde_json::to_string(&read).unwrap();
        assert_eq!(written, text.replace(r#""discovery":"command_line","#, ""));
        let inside = StateDescription { memory: MemoryShape::InsideState, ..read };
        let written = serde_json::to_string(&inside).unwrap();
        assert_eq!(serde_json::from_str::<StateDescription>(&written).unwrap(), inside);
    }
}
