//! A store in a temporary directory.
#![allow(dead_code, reason = "every test program uses its own part of this")]

use std::sync::Arc;

use camino::{Utf8Path, Utf8PathBuf};
use microvm_driver_disks::{Disks, DisksConfig};
use microvm_ports::{Clock, StorageError};
use microvm_types::VmId;

/// Time stands still, so that equal work gives equal files.
pub(crate) struct Frozen;

impl Clock for Frozen {
    fn now_ms(&self) -> i64 {
        1_700_000_000_000
    }

    fn fill_random(&self, bytes: &mut [u8]) {
        bytes.fill(7);
    }
}

/// A store that goes with its directory.
pub(crate) struct Home {
    pub(crate) directory: tempfile::TempDir,
    pub(crate) storage: Disks,
}

impl Home {
    pub(crate) fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let storage = open(Utf8Path::from_path(directory.path()).unwrap().join("store")).unwrap();
        Self { directory, storage }
    }

    pub(crate) fn path(&self, name: &str) -> Utf8PathBuf {
        Utf8Path::from_path(self.directory.path()).unwrap().join(name)
    }

    /// Names of work in progress that is there right now.
    pub(crate) fn work(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.path("store/tmp")).unwrap();
        entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| name != ".gate")
            .collect()
    }
}

pub(crate) fn open(root: Utf8PathBuf) -> Result<Disks, StorageError> {
    Disks::open(DisksConfig::new(root), Arc::new(Frozen))
}

pub(crate) fn vm_id(number: u64) -> VmId {
    VmId::from_parts(1_700_000_000_000, number)
}

/// Whether this test runs as root; prints a reason if not.
pub(crate) fn is_root() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        println!("SKIP: needs root");
    }
    root
}

/// A small file system that is gone with the test.
pub(crate) struct SmallDisk(pub(crate) tempfile::TempDir);

impl SmallDisk {
    pub(crate) fn mount(size: &str) -> Self {
        Self::mount_as("tmpfs", size)
    }

    pub(crate) fn mount_as(kind: &str, size: &str) -> Self {
        let point = tempfile::tempdir().unwrap();
        let status = std::process::Command::new("mount")
            .args(["-t", kind, "-o", &format!("size={size}"), kind])
            .arg(point.path())
            .status()
            .unwrap();
        assert!(status.success());
        Self(point)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg(self.0.path()).status();
    }
}
