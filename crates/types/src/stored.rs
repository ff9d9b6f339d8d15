//! Kinds of stored things.

use serde::{Deserialize, Serialize};

/// Kind of a stored thing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum StoredKind {
    /// Images.
    Images,
    /// Kernels with their initial file systems.
    Kernels,
    /// Directories of VMs: writable layers and consoles.
    Vms,
    /// Disk layers below VMs and snapshots; each counts once.
    Layers,
    /// Snapshots of users, and memory of hibernated VMs.
    Snapshots,
    /// Golden snapshots of templates.
    GoldenSnapshots,
    /// Memory that VMs run over, or that snapshots are restored from.
    Memory,
    /// Entries of the cache of image builds; their images count as images.
    BuildCache,
    /// Packages that image builds fetched.
    PackageCache,
    /// Work in progress.
    Work,
    /// Keys for ssh to VMs.
    SshKeys,
    /// Database, log, templates and settings of the server, and whatever else is below its root.
    Other,
}

impl StoredKind {
    /// Words for people.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Images => "images",
            Self::Kernels => "kernels",
            Self::Vms => "VMs",
            Self::Layers => "layers",
            Self::Snapshots => "snapshots",
            Self::GoldenSnapshots => "golden snapshots",
            Self::Memory => "memory",
            Self::BuildCache => "build cache",
            Self::PackageCache => "package cache",
            Self::Work => "work in progress",
            Self::SshKeys => "ssh keys",
            Self::Other => "other",
        }
    }
}
