//! Devices of a machine.

use camino::Utf8PathBuf;
use microvm_types::template::DiskFormat;

/// One device of a machine, beside its guest channel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Device {
    /// A disk.
    Disk(MachineDisk),
    /// A folder of the host.
    Share(MachineShare),
}

impl Device {
    /// The disk; `None` for other devices.
    #[must_use]
    pub const fn disk(&self) -> Option<&MachineDisk> {
        match self {
            Self::Disk(disk) => Some(disk),
            Self::Share(_) => None,
        }
    }

    /// The shared folder; `None` for other devices.
    #[must_use]
    pub const fn share(&self) -> Option<&MachineShare> {
        match self {
            Self::Share(share) => Some(share),
            Self::Disk(_) => None,
        }
    }
}

/// One disk of a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MachineDisk {
    /// File that holds the disk, or its uppermost layer.
    pub path: Utf8PathBuf,
    /// Format of the file.
    pub format: DiskFormat,
    /// Files below it (qcow2 backing chain), nearest first.
    pub backing: Vec<Utf8PathBuf>,
    /// True if the guest may not write.
    pub read_only: bool,
    /// Serial number the guest sees, at most 20 bytes.
    pub serial: String,
}

impl MachineDisk {
    /// The root file system of a machine: an immutable image.
    #[must_use]
    pub fn image(path: Utf8PathBuf) -> Self {
        Self {
            path,
            format: DiskFormat::Raw,
            backing: Vec::new(),
            read_only: true,
            serial: "image".to_owned(),
        }
    }
}

/// A folder of the host that a machine offers its guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MachineShare {
    /// The folder: absolute, and no symbolic link on the way to it.
    pub source: Utf8PathBuf,
    /// Name that the guest mounts it by: 1 to 31 letters and digits, no two alike.
    pub tag: String,
    /// True if the guest may not write. Enforced on the host.
    pub read_only: bool,
}
