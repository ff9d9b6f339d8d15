//! Named volumes.

use microvm_types::{Name, Unreadable, VolumeId};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// One volume: a disk with a file system that stays when VMs go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Volume {
    /// Its id.
    pub id: VolumeId,
    /// Its name.
    pub name: Name,
    /// Size of its disk in MiB.
    pub size_mib: u32,
    /// Bytes that it takes on the disk of the host.
    pub used_bytes: u64,
    /// Names of the VMs that have it, running or not. Forks and restored VMs have copies of their own.
    pub vms: Vec<Name>,
    /// When it was created (RFC 3339 with offset).
    pub created_at: String,
}

/// All volumes in order of creation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VolumeList {
    /// The volumes.
    pub volumes: Vec<Volume>,
    /// Those that cannot be read; the list is not whole then.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unreadable: Vec<Unreadable>,
}

/// A volume to be created.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateVolume {
    /// Its name.
    pub name: Name,
    /// Size of its disk in MiB; 10 GiB if absent. Space is taken as it is used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size_mib: Option<u32>,
}

/// Volumes that were removed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PrunedVolumes {
    /// Their names.
    pub removed: Vec<Name>,
    /// Bytes that are free now.
    pub freed_bytes: u64,
}
