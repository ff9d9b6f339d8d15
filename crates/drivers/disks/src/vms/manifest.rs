//! `disk.json`: what the disks of a VM consist of.
//!
//! ```text
//!  top        written by the VMM from its next branch on, or already
//!  pending    older tops, newest first: the VMM may still write to one of them
//!  layers     frozen, newest first; shared with snapshots and other VMs
//!  base       the empty ext4 below all; of a disk that was the user's: a copy of it
//! ```

use camino::{Utf8Path, Utf8PathBuf};
use microvm_durable::device::Device;
use microvm_durable::error::io_error;
use microvm_durable::files::rename_durably;
use microvm_durable::manifest;
use microvm_ports::StorageError;
use microvm_types::{SnapshotId, VmId};
use serde::{Deserialize, Serialize};

use super::VmDisks;

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
    /// The scratch disk.
    #[serde(flatten)]
    pub(crate) chain: Chain,
    /// Writable disks of the user's that were branched, or that the VM has a copy of.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) own: Vec<OwnDisk>,
    /// File name of the memory base that its machine is mapped over; `None`: zeros.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) memory_base: Option<String>,
    /// The snapshot that its memory has most in common with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) memory_parent: Option<SnapshotId>,
}

/// The files of one disk above its base.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Chain {
    /// File name of the newest top.
    #[serde(default = "first_top")]
    pub(crate) top: String,
    /// File names of older tops, newest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) pending: Vec<String>,
    /// Ids of frozen layers, newest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) layers: Vec<String>,
}

impl Chain {
    /// Nothing but a top over some layers.
    pub(crate) fn new(top: String, layers: Vec<String>) -> Self {
        Self { top, pending: Vec::new(), layers }
    }
}

/// A disk that is or was a file of the user's (docs/design/0014).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct OwnDisk {
    pub(crate) serial: String,
    /// Size of the disk.
    pub(crate) bytes: u64,
    #[serde(flatten)]
    pub(crate) chain: Chain,
    /// Id of the raw layer below all; `None`: the user's file itself, which no branch has copied yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) base: Option<String>,
    /// The user's file, to which what the VM writes goes in the end; `None`: the disk is the VM's alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) home: Option<Home>,
}

/// The user's file behind a disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Home {
    pub(crate) path: Utf8PathBuf,
    /// Its number in its file system: another file may take its name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) inode: Option<u64>,
    /// File system that it is on; `None` where that could not be told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) device: Option<Device>,
    /// State of the file when its content was copied; `None`: this program may have changed it since.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) left: Option<super::own_disk::Left>,
    /// True if it still has what the base has.
    #[serde(default)]
    pub(crate) holds_base: bool,
    /// True from before the first byte is written back to it until it has all of them; `None` in manifests of earlier versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) begun: Option<bool>,
}

impl Home {
    /// True if what is at its path is another file than the VM was given.
    pub(crate) fn is_another(&self, there: &std::fs::Metadata) -> bool {
        let inode = std::os::unix::fs::MetadataExt::ino(there);
        self.inode.is_some_and(|known| known != inode) || Device::differ(self.device, Device::of(there))
    }
}

impl OwnDisk {
    /// True if the user's file may have a part of what the VM wrote. Earlier versions noted only that its state was not known
    /// any more.
    pub(crate) fn has_begun(&self) -> bool {
        let of_earlier = |home: &Home| self.base.is_some() && home.left.is_none();
        self.home.as_ref().is_some_and(|home| home.begun.unwrap_or_else(|| of_earlier(home)))
    }
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
            chain: Chain::new(first_top(), Vec::new()),
            own: Vec::new(),
            memory_base: None,
            memory_parent: None,
        }
    }

    /// The chains of all disks.
    pub(crate) fn chains(&self) -> impl Iterator<Item = &Chain> {
        std::iter::once(&self.chain).chain(self.own.iter().map(|disk| &disk.chain))
    }

    /// The chains of all disks, to be changed.
    pub(crate) fn chains_mut(&mut self) -> impl Iterator<Item = &mut Chain> {
        std::iter::once(&mut self.chain).chain(self.own.iter_mut().map(|disk| &mut disk.chain))
    }

    /// True if a file of this name is a top of any of the disks.
    pub(crate) fn names_top(&self, name: &str) -> bool {
        self.chains().any(|chain| chain.top == name || chain.pending.iter().any(|older| older == name))
    }

    /// Ids of all layers, those below all included.
    pub(crate) fn all_layers(&self) -> impl Iterator<Item = &String> {
        let bases = self.own.iter().filter_map(|disk| disk.base.as_ref());
        self.chains().flat_map(|chain| &chain.layers).chain(bases)
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

/// True if a file of this name in a VM's directory is or was a top.
pub(crate) fn is_top(name: &str) -> bool {
    name == FIRST_TOP || layer_of_top(name).is_some()
}

impl VmDisks {
    /// Reads the manifest of a VM's disk.
    pub(crate) fn read_disk(&self, id: &VmId) -> Result<DiskManifest, StorageError> {
        manifest::read(&self.ground.vm_path(id).join(MANIFEST), &format!("the disk of VM {id}"))
    }

    /// Replaces the manifest of a VM's disk durably. The caller holds the lock of that disk.
    pub(crate) fn write_disk(&self, id: &VmId, disk: &DiskManifest) -> Result<(), StorageError> {
        let directory = self.ground.vm_path(id);
        let temporary = directory.join(format!("{MANIFEST}.new"));
        // One that a crash left would be in the way of the new one.
        microvm_durable::files::remove_all(&temporary)?;
        manifest::write(&temporary, disk)?;
        let renamed = rename_durably(&temporary, &directory.join(MANIFEST));
        if renamed.is_err() {
            // What could not be put in place must not stay beside it; the first error is the one to tell.
            let _ = microvm_durable::files::remove_all(&temporary);
        }
        renamed
    }

    /// Removes tops that the manifest does not name any more: leftovers of a crash between two steps.
    pub(crate) fn remove_stray_tops(
        &self,
        directory: &Utf8Path,
        disk: &DiskManifest,
    ) -> Result<(), StorageError> {
        for name in microvm_durable::files::names_in(directory)? {
            if is_top(&name) && !disk.names_top(&name) {
                let path = directory.join(name);
                std::fs::remove_file(&path).map_err(io_error("removing", &path))?;
            }
        }
        Ok(())
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
    fn disks_of_the_users_keep_their_chains_apart() {
        let mut disk = DiskManifest::new(64, "ext4-64-v1.raw".into());
        disk.chain.layers.push("a".into());
        disk.own.push(OwnDisk {
            serial: "data".into(),
            bytes: 512,
            chain: Chain::new("scratch-0123456789abcdefghij.qcow2".into(), vec!["b".into()]),
            base: Some("c".into()),
            home: None,
        });
        let read: DiskManifest = serde_json::from_str(&serde_json::to_string(&disk).unwrap()).unwrap();
        assert_eq!(read, disk);
        assert_eq!(disk.all_layers().collect::<Vec<_>>(), ["a", "b", "c"]);
        assert!(disk.names_top(FIRST_TOP) && disk.names_top("scratch-0123456789abcdefghij.qcow2"));
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
