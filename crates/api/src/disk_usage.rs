//! Disk space of the server's root, and making room there.

use microvm_types::{StoredKind, Unreadable};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Disk space below the root of the server. Every file counts once, whoever shares it; blocks count, not lengths.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DiskUsage {
    /// Root directory of the server.
    pub root: String,
    /// Bytes of everything below it: the sum of all parts.
    pub bytes: u64,
    /// Bytes that a prune of everything unused (`all=true`) would free at least.
    pub reclaimable_bytes: u64,
    /// Free bytes of its file system.
    pub free_bytes: u64,
    /// Parts by kind; kinds of which there is nothing are left out.
    pub parts: Vec<StoredPart>,
}

/// Stored things of one kind.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct StoredPart {
    /// Kind.
    pub kind: StoredKind,
    /// Number of things.
    pub count: usize,
    /// How many of them are in use.
    pub active: usize,
    /// Their bytes.
    pub bytes: u64,
    /// Bytes of those that a prune would remove.
    pub reclaimable_bytes: u64,
    /// The things, largest first.
    pub items: Vec<StoredItem>,
}

/// One stored thing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct StoredItem {
    /// Name of its file or directory.
    pub id: String,
    /// Name for people; that of the file if it has no other.
    pub name: String,
    /// Bytes.
    pub bytes: u64,
    /// True if something uses it.
    pub active: bool,
}

/// What is removed to make room.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
pub struct PruneSystem {
    /// Remove whatever can be made or fetched again, too: images that no VM, snapshot, pool or template needs, all golden
    /// snapshots, memory of snapshots, fetched packages.
    #[serde(default)]
    #[schema(default = false)]
    pub all: bool,
    /// Only tell what would be removed.
    #[serde(default)]
    #[schema(default = false)]
    pub dry_run: bool,
}

/// Outcome of a prune.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PrunedSystem {
    /// Everything that was removed, or would be.
    pub removed: Vec<PrunedItem>,
    /// What was to go and stays, with the reason of each.
    pub kept: Vec<Unreadable>,
    /// Bytes that this freed, or would free at least.
    pub bytes: u64,
    /// True if nothing was removed, because that was asked.
    pub dry_run: bool,
}

/// One thing that was removed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PrunedItem {
    /// Kind.
    pub kind: StoredKind,
    /// Its name, or what it is in words.
    pub name: String,
    /// Bytes.
    pub bytes: u64,
}
