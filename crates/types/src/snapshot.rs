//! The durable description of one snapshot.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::id::{SnapshotId, VmId};
use crate::name::Name;
use crate::template::Template;

/// Why a snapshot exists.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum SnapshotPurpose {
    /// Somebody asked for it.
    User,
    /// Its VM sleeps on it.
    Hibernation,
    /// New VMs of a template are forked from it instead of booting.
    Golden {
        /// What it was booted from: two machines with the same key are alike in everything but their identity.
        key: String,
    },
}

/// Everything about a snapshot that is not in its files. It never changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotRecord {
    /// Its id.
    pub id: SnapshotId,
    /// Its name, unique per tenant.
    pub name: Name,
    /// Who owns it.
    pub tenant: String,
    /// What its owner wrote about it.
    pub description: String,
    /// Why it exists.
    pub purpose: SnapshotPurpose,
    /// The VM it was taken of; may be gone since.
    pub vm: VmId,
    /// That VM's name then.
    pub vm_name: Name,
    /// That VM's template with all overrides.
    pub template: Template,
    /// Memory that its guest was asked to make do with, in MiB; `None`: all of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_now_mib: Option<u32>,
    /// Digest of the image below its disk.
    pub image_digest: String,
    /// That VM's labels.
    pub labels: BTreeMap<String, String>,
    /// How many times that VM's channel was opened until then.
    pub epoch: u64,
    /// When it was taken, milliseconds since 1970-01-01T00:00:00Z.
    pub created_ms: i64,
    /// How long the VM stood still for it, in microseconds.
    pub pause_us: u64,
}
