//! Directories below the root of the store.

use camino::{Utf8Path, Utf8PathBuf};
use microvm_durable::files::make_directory;
use microvm_ports::StorageError;

/// The directories. All on one file system, so that a rename is enough to publish.
#[derive(Debug, Clone)]
pub(crate) struct Directories {
    pub(crate) vms: Utf8PathBuf,
    pub(crate) memory: Utf8PathBuf,
    pub(crate) scratch_base: Utf8PathBuf,
    pub(crate) layers: Utf8PathBuf,
    pub(crate) snapshots: Utf8PathBuf,
    pub(crate) volumes: Utf8PathBuf,
    pub(crate) work: Utf8PathBuf,
}

impl Directories {
    /// The directory that holds all of them, without symbolic links on the way.
    pub(crate) fn root(&self) -> &Utf8Path {
        self.vms.parent().unwrap_or(&self.vms)
    }

    /// Makes what is missing. Everything is for the server's user alone. A VMM under its own user gets its files by mounts
    /// that are opened before the change of user, so it needs no way to them.
    pub(crate) fn create(root: &Utf8Path) -> Result<Self, StorageError> {
        make_directory(root, 0o711)?;
        let root = microvm_durable::files::canonical(root)?;
        let directories = Self {
            vms: root.join("vms"),
            memory: root.join("memory"),
            scratch_base: root.join("scratch-base"),
            layers: root.join("layers"),
            snapshots: root.join("snapshots"),
            volumes: root.join("volumes"),
            work: root.join("tmp"),
        };
        for (path, mode) in [
            (&directories.vms, 0o700),
            (&directories.memory, 0o700),
            (&directories.scratch_base, 0o700),
            (&directories.layers, 0o700),
            (&directories.snapshots, 0o700),
            (&directories.volumes, 0o700),
            (&directories.work, 0o700),
        ] {
            make_directory(path, mode)?;
        }
        Ok(directories)
    }
}
