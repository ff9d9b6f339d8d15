//! `disk.json`: what the disk of a VM consists of.
//!
//! ```text
//!  top        written by the VMM from its next branch on, or already
//!  pending    older tops, newest first: the VMM may still write to one of them
//!  layers     frozen, newest first; shared with snapshots and other VMs
//!  base       the empty ext4 below all
//! ```

use camino::{Utf8Path, Utf8PathBuf};
use microvm_ports::StorageError;
use microvm_types::{SnapshotId, VmId};
use serde::{Deserialize, Serialize};

use crate::base::error::io_error;
use crate::base::files::rename_durably;
use crate::base::manifest;
use crate::store::Inner;

/// Holds the manifest of a VM's disk.
pub(crate) const MANIFEST: &str = "disk.json";
/// The top a VM begins with if it does not stem from another.
pub(crate) const FIRST_TOP: &str = "scratch.qcow2";
const TOP_START: &str = "scratch-";
const TOP_END: &str = ".qcow2";

/// See the head of this file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct DiskManifest {
    pub(crate) disk_mib: u32,
    /// File name of the empty disk below all.
    pub(crate) base: String,
    /// File name of the newest top.
    #[serde(default = "first_top")]
    pub(crate) top: String,
    /// File names of older tops, newest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) pending: Vec<String>,
    /// Ids of frozen layers, newest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) layers: Vec<String>,
    /// File name of the memory base that its machine is mapped over; `None`: zeros.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) memory_base: Option<String>,
    /// The snapshot that its memory has most in common with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) memory_parent: Option<SnapshotId>,
}

fn first_top() -> String {
    FIRST_TOP.to_owned()
}

impl DiskManifest {
    /// A disk with nothing but its first top.
    pub(crate) fn new(disk_mib: u32, base: String) -> Self {
        Self {
            disk_mib,
            base,
            top: first_top(),
            pending: Vec::new(),
            layers: Vec::new(),
            memory_base: None,
            memory_parent: None,
        }
    }
}

/// File name of the top that becomes layer `id`.
pub(crate) fn top_name(id: &str) -> String {
    format!("{TOP_START}{id}{TOP_END}")
}

/// The layer that a top becomes; `None` for a first top, which has no id yet.
pub(crate) fn layer_of_top(name: &str) -> Option<&str> {
    let id = name.strip_prefix(TOP_START)?.strip_suffix(TOP_END)?;
    SnapshotId::is_valid(id).then_some(id)
}

/// Whether a file of this name in a VM's directory is or was a top.
pub(crate) fn is_top(name: &str) -> bool {
    name == FIRST_TOP || layer_of_top(name).is_some()
}

impl Inner {
    /// Reads the manifest of a VM's disk.
    pub(crate) fn read_disk(&self, id: &VmId) -> Result<DiskManifest, StorageError> {
        manifest::read(&self.vm_path(id).join(MANIFEST), &format!("the disk of VM {id}"))
    }

    /// Replaces the manifest of a VM's disk durably. The caller holds the lock of that disk.
    pub(crate) fn write_disk(&self, id: &VmId, disk: &DiskManifest) -> Result<(), StorageError> {
        let directory = self.vm_path(id);
        let temporary = directory.join(format!("{MANIFEST}.new"));
        crate::base::files::remove_all(&temporary)?;
        manifest::write(&temporary, disk)?;
        let renamed = rename_durably(&temporary, &directory.join(MANIFEST));
        if renamed.is_err() {
            // What could not be put in place must not stay beside it; the first error is the one to tell.
            let _ = crate::base::files::remove_all(&temporary);
        }
        renamed
    }

    /// Removes tops that the manifest does not name any more: leftovers of a crash between two steps.
    pub(crate) fn remove_stray_tops(
        &self,
        directory: &Utf8Path,
        disk: &DiskManifest,
    ) -> Result<(), StorageError> {
        for name in crate::base::files::names_in(directory)? {
            if is_top(&name) && name != disk.top && !disk.pending.contains(&name) {
                let path = directory.join(name);
                std::fs::remove_file(&path).map_err(io_error("removing", &path))?;
            }
        }
        Ok(())
    }

    /// The file of a layer.
    pub(crate) fn layer_path(&self, id: &str) -> Utf8PathBuf {
        self.directories.layers.join(format!("{id}.qcow2"))
    }

    /// Where the checksums of a layer are remembered.
    pub(crate) fn layer_sums(&self, id: &str) -> Utf8PathBuf {
        self.directories.layers.join(format!("{id}.json"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manifest_of_the_first_version_still_reads() {
        let disk: DiskManifest = serde_json::from_str(r#"{"disk_mib":64,"base":"ext4-64-v1.raw"}"#).unwrap();
        assert_eq!(disk, DiskManifest::new(64, "ext4-64-v1.raw".into()));
    }

    #[test]
    fn tops_and_layers_have_one_name() {
        let id = "0123456789abcdefghij";
        assert_eq!(layer_of_top(&top_name(id)), Some(id));
        for name in ["scratch.qcow2", "scratch-.qcow2", "scratch-../x.qcow2", "disk.json", "scratch-a.qcow2"]
        {
            assert_eq!(layer_of_top(name), None, "{name}");
        }
        assert!(is_top(FIRST_TOP) && !is_top("disk.json"));
    }
}
