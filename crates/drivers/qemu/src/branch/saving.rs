//! Facts about a machine that a save needs.

use std::collections::BTreeMap;

use camino::Utf8PathBuf;
use microvm_ports::LaunchError;
use microvm_ports::branch::Compatibility;
use microvm_ports::hypervisor::{MachineDisk, MachineSpec};
use microvm_types::kernel::DeviceDiscovery;
use serde::{Deserialize, Serialize};

use crate::disks;
use crate::memory::MemoryFile;
use crate::probe::compatibility;

/// Facts about a machine that a save needs; a part of its record.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Saving {
    pub(crate) memory_base: Utf8PathBuf,
    pub(crate) memory: MemoryFile,
    /// Index of each writable disk by its serial number.
    pub(crate) disks: BTreeMap<String, usize>,
    /// File name of the overlay that each of them began with.
    #[serde(default, rename = "first_tops")]
    pub(crate) first_overlays: BTreeMap<String, String>,
    pub(crate) compatibility: Compatibility,
    /// Source from which the kernel learnt of its devices. Earlier versions cannot branch a machine whose record lacks it; here
    /// the machine type in the compatibility tells it.
    #[serde(default)]
    discovery: Option<DeviceDiscovery>,
    /// True if the host reads and writes all its disks through its page cache.
    #[serde(default)]
    pub(crate) buffered_disks: bool,
}

impl Saving {
    pub(crate) fn of(spec: &MachineSpec, compatibility: Compatibility) -> Result<Self, LaunchError> {
        let memory_base = spec
            .memory_base()
            .ok_or_else(|| LaunchError::Spec("it has no file for its memory to be mapped over".to_owned()))?;
        let memory = MemoryFile::of(memory_base, spec.memory_mib)
            .map_err(|error| LaunchError::Spec(format!("{memory_base}: {error}")))?;
        let disks = spec.writable_disks().map(|(index, disk)| (disk.serial.clone(), index)).collect();
        let name = |disk: &MachineDisk| disk.path.file_name().unwrap_or_default().to_owned();
        let first_overlays =
            spec.writable_disks().map(|(_, disk)| (disk.serial.clone(), name(disk))).collect();
        let discovery = compatibility::discovery(&compatibility).ok();
        Ok(Self {
            memory_base: memory_base.to_owned(),
            memory,
            disks,
            first_overlays,
            compatibility,
            discovery,
            buffered_disks: spec.disks().all(disks::is_buffered),
        })
    }
}
