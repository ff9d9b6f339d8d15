//! Named volumes: disks with a file system of their own, which stay when the VMs that used them go.

use serde::{Deserialize, Serialize};

use crate::id::VolumeId;
use crate::name::Name;

/// Size of a volume that is created without one, in MiB (10 GiB). Space is taken as it is used.
pub const DEFAULT_VOLUME_MIB: u32 = 10_240;

/// A volume that VMs of a template have, and the path at which their guests see it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct VolumeMount {
    /// Name of the volume. One that does not exist is created at its first use.
    pub name: Name,
    /// Absolute path in the guest where it appears; made if it is not there.
    pub target: String,
    /// True if the guest may not write to it: any number of VMs may read a volume at once, and only one may write to it.
    #[serde(default)]
    pub read_only: bool,
}

impl VolumeMount {
    /// Serial number of the disk of a VM's volume number `index`, counted from 0.
    #[must_use]
    pub fn serial(index: usize) -> String {
        format!("volume{index}")
    }
}

/// The durable description of one volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeRecord {
    /// Its id.
    pub id: VolumeId,
    /// Its name, unique per tenant.
    pub name: Name,
    /// Its owner.
    pub tenant: String,
    /// Size of its disk in MiB.
    pub size_mib: u32,
    /// Creation, milliseconds since 1970-01-01T00:00:00Z.
    pub created_ms: i64,
}
