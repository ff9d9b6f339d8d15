//! New tops over a VM's disk, and freezing what is below them.
//!
//! A top is made before the VMM knows of it, and named in the manifest before it is used, so that a crash at any later
//! point finds a chain that shows the same content: an empty top shows what is below. Whether the VMM has switched is
//! only known when somebody keeps the branch; until then what is below a top may still be written and is not shared.

use std::os::unix::fs::{MetadataExt, PermissionsExt};

use camino::Utf8Path;
use microvm_ports::StorageError;
use microvm_ports::branch::NewTop;
use microvm_types::{SnapshotId, VmId};

use super::files::{SCRATCH_SERIAL, write_sparse};
use super::manifest::{DiskManifest, layer_of_top, top_name};
use super::qcow2_overlay;
use crate::base::error::{bad_input, damaged, failed, io_error};
use crate::base::files::{exists, remove_all, require_space, sync_directory};
use crate::snapshots::{Pin, layer_key};
use crate::store::Inner;

/// Less free space than this and no branch is begun.
const SPACE_MIN: u64 = 4 << 20;

/// The disk of a VM as it was at a branch.
pub(crate) struct FrozenDisk {
    pub(crate) disk_mib: u32,
    pub(crate) base: String,
    /// Newest first, each pinned by `pins`.
    pub(crate) layers: Vec<String>,
    pub(crate) memory_parent: Option<SnapshotId>,
    pub(crate) pins: Vec<Pin>,
}

impl Inner {
    /// Makes a new top and notes it.
    pub(crate) fn prepare_top(&self, vm: &VmId) -> Result<NewTop, StorageError> {
        let lock = self.locks.of(&format!("disk/{vm}"));
        let _alone = lock.hold();
        let mut disk = self.read_disk(vm)?;
        let directory = self.vm_path(vm);
        require_space(&directory, SPACE_MIN, "preparing a branch")?;
        self.remove_stray_tops(&directory, &disk)?;
        let name = self.fresh_top(&directory);
        let path = directory.join(&name);
        let made = self.write_top(&path, &disk).and_then(|()| {
            let older = std::mem::replace(&mut disk.top, name);
            disk.pending.insert(0, older);
            self.write_disk(vm, &disk)
        });
        if let Err(error) = made {
            // Only if the manifest does not name it: the step that failed may have been the last sync.
            if self.read_disk(vm).is_ok_and(|now| path.file_name() != Some(&now.top)) {
                remove_all(&path)?;
            }
            return Err(error);
        }
        Ok(NewTop { serial: SCRATCH_SERIAL.to_owned(), path })
    }

    /// A name for a new top that neither a file nor a layer has.
    pub(crate) fn fresh_top(&self, directory: &Utf8Path) -> String {
        top_name(&self.fresh_id(|id| exists(&directory.join(top_name(id))) || exists(&self.layer_path(id))))
    }

    /// Writes an empty top of a disk and syncs it.
    pub(crate) fn write_top(&self, path: &Utf8Path, disk: &DiskManifest) -> Result<(), StorageError> {
        let base = self.directories.scratch_base.join(&disk.base);
        let bytes = qcow2_overlay::encode(u64::from(disk.disk_mib) << 20, base.as_str());
        let written = write_sparse(path, &bytes);
        if written.is_err() {
            // A torn top must not stay; the first error is the one to tell.
            let _ = remove_all(path);
        }
        written
    }

    /// Turns what lies below the top of a branch into layers that may be shared. `memory_base`: what its machine is
    /// mapped over, noted on the way.
    ///
    /// The VMM that wrote to them keeps its open files: it has switched to the top and an honest one writes no more. If it
    /// does, the layer's checksum tells at its next use, and it has harmed what stems from its own state, nothing else.
    pub(crate) fn freeze(
        &self,
        vm: &VmId,
        tops: &[NewTop],
        memory_base: Option<&str>,
    ) -> Result<FrozenDisk, StorageError> {
        let lock = self.locks.of(&format!("disk/{vm}"));
        let _alone = lock.hold();
        let top = match tops {
            [top] if top.serial == SCRATCH_SERIAL => top.path.file_name().unwrap_or_default(),
            _ => return Err(bad_input("the branch", "it must name one top, that of the scratch disk")),
        };
        let mut disk = self.read_disk(vm)?;
        let directory = self.vm_path(vm);
        let place = if disk.top == top {
            Some(0)
        } else {
            disk.pending.iter().position(|name| name == top).map(|index| index + 1)
        };
        let mut pins = Vec::new();
        let below = match place {
            // It is a layer itself by now: a later branch was kept earlier.
            None => match layer_of_top(top).and_then(|id| disk.layers.iter().position(|layer| layer == id)) {
                Some(index) => index + 1,
                None => {
                    return Err(bad_input("the branch", format!("VM {vm} has no top `{top}` any more")));
                }
            },
            Some(kept) => {
                let old = disk.pending.split_off(kept);
                let mut frozen = Vec::new();
                for name in &old {
                    let id = match layer_of_top(name) {
                        Some(id) => id.to_owned(),
                        None => self.fresh_id(|id| exists(&self.layer_path(id))),
                    };
                    // Before it exists, so that it is never seen without a user.
                    pins.push(self.pins.pin(layer_key(&id)));
                    self.link_layer(&directory.join(name), &id)?;
                    frozen.push(id);
                }
                disk.layers.splice(0..0, frozen);
                let noted = memory_base.map(str::to_owned);
                if !old.is_empty() || disk.memory_base != noted {
                    disk.memory_base = noted;
                    sync_directory(&self.directories.layers)?;
                    self.write_disk(vm, &disk)?;
                }
                self.remove_stray_tops(&directory, &disk)?;
                0
            }
        };
        let mut layers = Vec::new();
        for id in &disk.layers[below..] {
            pins.push(self.pins.pin(layer_key(id)));
            let path = self.layer_path(id);
            if !exists(&path) {
                return Err(damaged(format!("the disk of VM {vm}"), format!("its layer {path} is missing")));
            }
            // Nothing was written between two branches: nobody new needs it.
            if !super::qcow2::is_empty_overlay(&path)? {
                layers.push(id.clone());
            }
        }
        Ok(FrozenDisk {
            disk_mib: disk.disk_mib,
            base: disk.base,
            layers,
            memory_parent: disk.memory_parent,
            pins,
        })
    }

    /// The top called `top` holds all that was below it. The layers are left to the collector.
    pub(crate) fn note_flattened(&self, vm: &VmId, top: &str) -> Result<(), StorageError> {
        let lock = self.locks.of(&format!("disk/{vm}"));
        let _alone = lock.hold();
        let mut disk = self.read_disk(vm)?;
        if disk.top == top {
            disk.pending.clear();
            disk.layers.clear();
        } else if let Some(index) = disk.pending.iter().position(|name| name == top) {
            disk.pending.truncate(index + 1);
            disk.layers.clear();
        } else if let Some(index) =
            layer_of_top(top).and_then(|id| disk.layers.iter().position(|layer| layer == id))
        {
            disk.layers.truncate(index + 1);
        } else {
            return Err(bad_input("the disk", format!("VM {vm} has no top `{top}` any more")));
        }
        self.write_disk(vm, &disk)?;
        self.remove_stray_tops(&self.vm_path(vm), &disk)
    }

    /// Gives an old top its place among the layers; done already is fine. Both names are the same file until the old one
    /// goes.
    fn link_layer(&self, old: &Utf8Path, id: &str) -> Result<(), StorageError> {
        let layer = self.layer_path(id);
        let file = std::fs::File::open(old).map_err(io_error("opening", old))?;
        let metadata = file.metadata().map_err(io_error("examining", old))?;
        // Readable for VMMs that run under other users and get it by a mount; the directory lets nobody else through. It
        // stays with the user of the VMM that wrote it, which opens it again at later branches (QEMU does, for writing
        // too, though it does not write).
        file.set_permissions(std::fs::Permissions::from_mode(0o644))
            .map_err(io_error("setting the mode of", old))?;
        match std::fs::hard_link(old, &layer) {
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
                let there = layer.metadata().map_err(io_error("examining", &layer))?;
                if (there.dev(), there.ino()) == (metadata.dev(), metadata.ino()) {
                    Ok(())
                } else {
                    Err(damaged(format!("the layer {layer}"), "another file has its name"))
                }
            }
            other => other.map_err(|error| failed("linking", &layer, error)),
        }
    }
}
