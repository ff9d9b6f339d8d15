//! Which file system a file is on.
//!
//! An inode number alone names no file: two file systems have the same ones, and a copy of a whole file system has the same
//! sizes and times too. Device numbers are given anew at each boot of the host, so they are compared within one boot only.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt as _;

use serde::{Deserialize, Serialize};

/// The device of a file, and the boot of the host in which that was its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    number: u64,
    boot: u64,
}

impl Device {
    /// The device of a file; `None` where the boot cannot be told.
    pub fn of(metadata: &Metadata) -> Option<Self> {
        boot().map(|boot| Self { number: metadata.dev(), boot })
    }

    /// True if files with these devices are surely on different file systems. Notes of older versions have none.
    pub fn differ(one: Option<Self>, other: Option<Self>) -> bool {
        matches!((one, other), (Some(one), Some(other)) if one.boot == other.boot && one.number != other.number)
    }
}

/// The first half of the random id of this boot (random(4)).
fn boot() -> Option<u64> {
    let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?.replace('-', "");
    u64::from_str_radix(id.get(..16)?, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_compared_within_one_boot() {
        let device = |number, boot| Some(Device { number, boot });
        assert!(Device::differ(device(1, 7), device(2, 7)));
        assert!(!Device::differ(device(1, 7), device(1, 7)));
        assert!(!Device::differ(device(1, 7), device(2, 8)));
        assert!(!Device::differ(None, device(2, 8)));
    }

    #[test]
    fn two_file_systems_differ() {
        let of = |path| Device::of(&std::fs::metadata(path).unwrap());
        assert!(of("/").is_some());
        assert!(Device::differ(of("/"), of("/proc")));
        assert!(!Device::differ(of("/proc"), of("/proc/self")));
    }
}
