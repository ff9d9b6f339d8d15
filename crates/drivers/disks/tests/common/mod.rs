//! A store in a temporary directory.
#![allow(dead_code, reason = "every test program uses its own part of this")]

pub(crate) mod branches;

use std::sync::Arc;

use camino::{Utf8Path, Utf8PathBuf};
use microvm_conformance::fixtures::{Frozen, work_in_progress};
use microvm_driver_disks::{Disks, DisksConfig};
use microvm_ports::StorageError;
use microvm_types::VmId;

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
        work_in_progress(&self.path("store"))
    }
}

pub(crate) fn open(root: Utf8PathBuf) -> Result<Disks, StorageError> {
    Disks::open(DisksConfig::new(root), Arc::new(Frozen))
}

pub(crate) fn vm_id(number: u64) -> VmId {
    VmId::from_parts(1_700_000_000_000, number)
}
