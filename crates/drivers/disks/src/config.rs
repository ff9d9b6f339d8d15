//! Settings of the store of disks and snapshots.

use camino::Utf8PathBuf;

/// Settings of the store of disks and snapshots.
#[derive(Debug, Clone)]
pub struct DisksConfig {
    /// Directory of all files; made if missing.
    pub root: Utf8PathBuf,
    /// Bytes on the disk that all VMs, their snapshots and layers may take together; `None`: what the file system has.
    pub disk_limit: Option<u64>,
    /// Most bytes of an imported snapshot, unpacked. Export files may come from strangers.
    pub import_most: u64,
}

impl DisksConfig {
    /// Settings with the usual limits: imports of up to 256 GiB, no limit of disk space.
    #[must_use]
    pub fn new(root: impl Into<Utf8PathBuf>) -> Self {
        Self { root: root.into(), disk_limit: None, import_most: 256 << 30 }
    }
}
