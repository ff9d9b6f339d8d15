//! Disks, shared folders and the way a kernel finds its devices.

use camino::Utf8PathBuf;
use microvm_types::template::DiskFormat;
use serde::{Deserialize, Serialize};

/// How a kernel learns where virtio-mmio devices are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DeviceDiscovery {
    /// From ACPI tables.
    Acpi,
    /// From `virtio_mmio.device=` on its command line; faster, no ACPI needed.
    CommandLine,
}

/// One disk of a machine.
#[derive(Debug, Clone)]
pub struct MachineDisk {
    /// File that holds it.
    pub path: Utf8PathBuf,
    /// Format of the file.
    pub format: DiskFormat,
    /// Files below it (qcow2 backing chain), nearest first.
    pub backing: Vec<Utf8PathBuf>,
    /// Whether the guest may not write.
    pub read_only: bool,
    /// Serial number the guest sees, at most 20 bytes.
    pub serial: String,
}

/// A folder of the host that a machine offers its guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MachineShare {
    /// The folder: absolute, and no symbolic link on the way to it.
    pub source: Utf8PathBuf,
    /// What the guest asks for to get it: 1 to 31 letters and digits, no two alike.
    pub tag: String,
    /// Whether the guest may not write. Enforced on the host.
    pub read_only: bool,
}
