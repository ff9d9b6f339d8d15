//! Snapshots, restores and forks.

use std::collections::BTreeMap;

use microvm_types::vm::Limits;
use microvm_types::{Name, SnapshotId, Unreadable, VmId};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::milliseconds::Milliseconds;
use crate::vm::Vm;

/// One snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Snapshot {
    /// Its id.
    pub id: SnapshotId,
    /// Its name.
    pub name: Name,
    /// Id of the VM it was taken of, which may be gone.
    pub vm: VmId,
    /// That VM's name then.
    pub vm_name: Name,
    /// Description by its owner.
    pub description: String,
    /// True for a golden snapshot, which the server made of a template.
    pub golden: bool,
    /// The snapshot it builds on; absent if it is whole in itself.
    pub parent_snapshot: Option<SnapshotId>,
    /// True if it builds on another one.
    pub incremental: bool,
    /// Name of the VM's template.
    pub template: String,
    /// Image that the VM was created from, as its template named it then; empty: the server is older.
    #[serde(default)]
    pub image: String,
    /// Virtual processors.
    pub vcpus: u32,
    /// Memory that the guest had, in MiB.
    pub memory_mib: u32,
    /// Memory of its machine in MiB, which a VM that is made of it takes: the most that a resize can give it.
    #[serde(default)]
    pub memory_max_mib: u32,
    /// Bytes of memory that differ from the parent.
    pub memory_bytes: u64,
    /// Bytes on disk that are its own.
    pub size_bytes: u64,
    /// SHA-256 over its manifest, which holds those of its parts.
    pub checksum: String,
    /// Pause of the VM in milliseconds.
    pub pause_ms: Milliseconds,
    /// When it was taken (RFC 3339 with offset).
    pub created_at: String,
}

/// A snapshot to be taken.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateSnapshot {
    /// Its name; one is made of the VM's name if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<Name>,
    /// Description by its owner.
    #[serde(default)]
    pub description: String,
    /// Make it whole in itself instead of building on its parent.
    #[serde(default)]
    pub full: bool,
    /// Answer when every byte is safe; otherwise as soon as the VM goes on, with status 202.
    #[serde(default = "yes")]
    pub wait: bool,
}

impl Default for CreateSnapshot {
    fn default() -> Self {
        Self { name: None, description: String::new(), full: false, wait: true }
    }
}

/// A snapshot that is being written; it is listed when every byte is safe.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct BegunSnapshot {
    /// Its id.
    pub id: SnapshotId,
    /// Its name.
    pub name: Name,
    /// Pause of the VM in milliseconds.
    pub pause_ms: Milliseconds,
}

/// Some snapshots, oldest first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SnapshotList {
    /// The snapshots.
    pub snapshots: Vec<Snapshot>,
    /// Those that cannot be read; the list is not whole then.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unreadable: Vec<Unreadable>,
}

/// Options of a restore.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RestoreSnapshot {
    /// Put the VM it was taken of back in time, instead of making new VMs. Then nothing below counts.
    #[serde(default = "yes")]
    pub in_place: bool,
    /// Number of new VMs.
    #[serde(default = "one")]
    pub count: usize,
    /// Their name, with `{n}` for the number; made up if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Labels on top of the snapshot's.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Free text, never interpreted.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub metadata: BTreeMap<String, String>,
    /// Limits of their life and their idle time.
    #[serde(default)]
    pub limits: Limits,
}

impl Default for RestoreSnapshot {
    fn default() -> Self {
        Self {
            in_place: true,
            count: 1,
            name: None,
            labels: BTreeMap::new(),
            metadata: BTreeMap::new(),
            limits: Limits::default(),
        }
    }
}

const fn yes() -> bool {
    true
}

const fn one() -> usize {
    1
}

/// Result of a restore.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Restored {
    /// In words.
    pub message: String,
    /// The VMs that go on from it.
    pub vms: Vec<Vm>,
}

/// Children of a running VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ForkVm {
    /// How many.
    #[serde(default = "one")]
    pub count: usize,
    /// Their name, with `{n}` for the number; made up if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Labels on top of the parent's.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Free text, never interpreted.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub metadata: BTreeMap<String, String>,
    /// Limits of their life and their idle time.
    #[serde(default)]
    pub limits: Limits,
}

impl Default for ForkVm {
    fn default() -> Self {
        Self {
            count: 1,
            name: None,
            labels: BTreeMap::new(),
            metadata: BTreeMap::new(),
            limits: Limits::default(),
        }
    }
}

/// Result of a fork.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Forked {
    /// The children, in the order of their numbers.
    pub vms: Vec<Vm>,
    /// Pause of the parent in milliseconds.
    pub pause_ms: Milliseconds,
    /// Bytes of memory that were copied.
    pub changed_bytes: u64,
    /// From the request to the last child's answer, in milliseconds.
    pub duration_ms: Milliseconds,
}

/// Result of verifying a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Verification {
    /// Every byte is as it was written.
    pub valid: bool,
    /// SHA-256 over its manifest.
    pub stored_checksum: String,
    /// The same over what is on disk now: the stored one if every byte of its own is as it was written, else another one.
    pub current_checksum: String,
    /// Bytes on disk that are its own.
    pub size_bytes: u64,
    /// Description of the damage; absent if there is none.
    pub error: Option<String>,
    /// Which parts are damaged, and where.
    pub damage: Vec<Damage>,
}

/// A damaged part.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Damage {
    /// Which part: `manifest`, `device-state`, `state/<part>`, `memory`, `disk/<layer>` or `parent`.
    pub part: String,
    /// First byte of the file that is wrong or missing, as far as it can be told.
    pub first_byte: u64,
    /// The byte after the last one of the damaged range.
    pub end_byte: u64,
    /// Expected and found value.
    pub detail: String,
}

/// A version of what a template boots to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct GoldenVersion {
    /// The snapshot.
    pub snapshot: Snapshot,
    /// True if new VMs of the template are forked from it.
    pub current: bool,
}

/// Versions of what a template boots to, oldest first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct GoldenList {
    /// The versions.
    pub versions: Vec<GoldenVersion>,
}

/// Result of a cleanup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Cleaned {
    /// In words.
    pub message: String,
    /// Names of those removed.
    pub removed: Vec<Name>,
    /// Those that were to go and could not be removed, with the reason of each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub kept: Vec<Unreadable>,
}

/// All snapshots together.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SnapshotStatistics {
    /// Number of those that users took.
    pub total_snapshots: usize,
    /// Number of golden ones.
    pub golden_snapshots: usize,
    /// Bytes on disk of those that users took.
    pub total_size_bytes: u64,
    /// Bytes on disk of golden ones.
    #[serde(default)]
    pub golden_size_bytes: u64,
    /// Bytes on disk of the memory of hibernated VMs.
    #[serde(default)]
    pub hibernation_size_bytes: u64,
    /// VMs (living or gone) that have any.
    pub vms_with_snapshots: usize,
    /// Those of each VM, by its id.
    #[serde(default)]
    pub vms: BTreeMap<String, SnapshotsOfVm>,
    /// When the oldest was taken (RFC 3339 with offset).
    pub oldest_snapshot: Option<String>,
    /// When the newest was taken (RFC 3339 with offset).
    pub newest_snapshot: Option<String>,
    /// Snapshots that cannot be read and are not counted above.
    #[serde(default)]
    pub unreadable_snapshots: usize,
}

/// Snapshots of one VM that users took.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SnapshotsOfVm {
    /// Name of the VM when the newest was taken.
    pub vm_name: Name,
    /// How many.
    pub snapshots: usize,
    /// Bytes on disk.
    pub size_bytes: u64,
}

/// A file on the server's host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SnapshotFile {
    /// Absolute path.
    pub path: String,
    /// Name of the snapshot that an import makes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<Name>,
}
