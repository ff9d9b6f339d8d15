//! New tops over a VM's disk, and freezing what is below them.
//!
//! A top is made before the VMM knows of it, and named in the manifest before it is used, so that a crash at any later
//! point finds a chain that shows the same content: an empty top shows what is below. Whether the VMM has switched is
//! only known when somebody keeps the branch; until then what is below a top may still be written and is not shared.

use std::os::unix::fs::{MetadataExt, PermissionsExt};

use camino::{Utf8Path, Utf8PathBuf};
use microvm_durable::cancel::Cancel;
use microvm_durable::error::{bad_input, damaged, failed, io_error};
use microvm_durable::files::{exists, remove_all, sync_directory};
use microvm_ports::StorageError;
use microvm_ports::branch::DiskChange;
use microvm_ports::snapshot::UserDisk;
use microvm_types::{SnapshotId, VmId};

use super::files::{SCRATCH_SERIAL, write_sparse};
use super::manifest::{Chain, DiskManifest, layer_of_top, top_name};
use super::qcow2_overlay;
use super::{Tops, VmDisks};
use crate::ground::{Pin, layer_key};

/// Less free space than this and no branch is begun.
const SPACE_MIN: u64 = 4 << 20;
/// Name of the backing file in the header of a top over a user's disk: a stand-in, because whoever opens it names the real one.
const OWN_BACKING: &str = "user-disk";

/// One disk's part of a freeze.
struct FrozenChain {
    /// The layers of the branch begin there.
    below: usize,
    changed: bool,
    /// No later branch was kept before.
    is_current: bool,
}

impl Chain {
    /// The top called `top` holds all that was below it; `false` if it is none of this chain.
    fn flattened_to(&mut self, top: &str) -> bool {
        if self.top == top {
            self.pending.clear();
            self.layers.clear();
        } else if let Some(index) = self.pending.iter().position(|name| name == top) {
            self.pending.truncate(index + 1);
            self.layers.clear();
        } else if let Some(index) =
            layer_of_top(top).and_then(|id| self.layers.iter().position(|layer| layer == id))
        {
            self.layers.truncate(index + 1);
        } else {
            return false;
        }
        true
    }
}

/// Writes an empty top of a disk and syncs it.
fn write_top(path: &Utf8Path, bytes: u64, backing: &str) -> Result<(), StorageError> {
    let written = write_sparse(path, &qcow2_overlay::encode(bytes, backing));
    if written.is_err() {
        // A torn top must not stay; the first error is the one to tell.
        let _ = remove_all(path);
    }
    written
}

/// The disks of a VM as they were at a branch.
pub(crate) struct FrozenDisk {
    pub(crate) disk_mib: u32,
    pub(crate) base: String,
    /// Newest first, each pinned by `pins`.
    pub(crate) layers: Vec<String>,
    /// Disks that were the user's.
    pub(crate) own: Vec<FrozenOwn>,
    pub(crate) memory_parent: Option<SnapshotId>,
    pub(crate) pins: Vec<Pin>,
}

/// A disk that was the user's, as it was at a branch.
#[derive(Debug, Clone)]
pub(crate) struct FrozenOwn {
    pub(crate) serial: String,
    pub(crate) bytes: u64,
    /// Id of the raw layer below all.
    pub(crate) base: String,
    /// Newest first.
    pub(crate) layers: Vec<String>,
    /// The file that the VM itself writes it back to.
    pub(crate) home: Option<Utf8PathBuf>,
}

impl Tops {
    /// Makes a new top for every disk and notes them. `own`: writable disks of the user's, for those that have none yet.
    pub(crate) fn prepare_overlays(
        &self,
        vm: &VmId,
        own: &[UserDisk],
    ) -> Result<Vec<DiskChange>, StorageError> {
        let lock = self.ground.disk_lock(vm);
        let _alone = lock.hold();
        let mut disk = self.vms.read_disk(vm)?;
        let directory = self.ground.vm_path(vm);
        let _room = self.ground.room.require(&directory, SPACE_MIN, "preparing a branch")?;
        self.vms.remove_stray_tops(&directory, &disk)?;
        let mut made: Vec<Utf8PathBuf> = Vec::new();
        let noted = self.add_tops(vm, own, &mut disk, &directory, &mut made);
        if let Err(error) = noted {
            // Only if the manifest does not name them: the step that failed may have been the last sync.
            if let Ok(now) = self.vms.read_disk(vm) {
                for path in &made {
                    if !now.names_top(path.file_name().unwrap_or_default()) {
                        remove_all(path)?;
                    }
                }
            }
            return Err(error);
        }
        let serials = std::iter::once(SCRATCH_SERIAL).chain(disk.own.iter().map(|own| own.serial.as_str()));
        let tops = serials.zip(disk.chains()).map(|(serial, chain)| DiskChange {
            serial: serial.to_owned(),
            path: directory.join(&chain.top),
        });
        Ok(tops.collect())
    }

    fn add_tops(
        &self,
        vm: &VmId,
        own: &[UserDisk],
        disk: &mut DiskManifest,
        directory: &Utf8Path,
        made: &mut Vec<Utf8PathBuf>,
    ) -> Result<(), StorageError> {
        let mut fresh = |bytes, backing: &str| {
            let name = self.vms.fresh_top(directory);
            let path = directory.join(&name);
            write_top(&path, bytes, backing)?;
            made.push(path);
            Ok::<_, StorageError>(name)
        };
        let base = self.ground.directories.scratch_base.join(&disk.base);
        let newest = fresh(u64::from(disk.disk_mib) << 20, base.as_str())?;
        disk.chain.pending.insert(0, std::mem::replace(&mut disk.chain.top, newest));
        for known in &mut disk.own {
            let newest = fresh(known.bytes, OWN_BACKING)?;
            known.chain.pending.insert(0, std::mem::replace(&mut known.chain.top, newest));
        }
        for new in own {
            if disk.own.iter().all(|known| known.serial != new.serial) {
                let mut adopted = self.adopt_disk(new, String::new())?;
                adopted.chain.top = fresh(adopted.bytes, OWN_BACKING)?;
                disk.own.push(adopted);
            }
        }
        self.vms.write_disk(vm, disk)
    }

    /// Turns what lies below the tops of a branch into layers that may be shared. `memory_base`: what its machine is
    /// mapped over, noted on the way.
    ///
    /// The VMM that wrote to them keeps its open files: it has switched to the tops and an honest one writes no more. If it
    /// does, the layer's checksum tells at its next use, and it has harmed what stems from its own state, nothing else.
    pub(crate) fn freeze(
        &self,
        vm: &VmId,
        tops: &[DiskChange],
        memory_base: Option<&str>,
        cancel: &Cancel,
    ) -> Result<FrozenDisk, StorageError> {
        let lock = self.ground.disk_lock(vm);
        let _alone = lock.hold();
        let mut disk = self.vms.read_disk(vm)?;
        let directory = self.ground.vm_path(vm);
        let top_of = |serial: &str| {
            let top = tops.iter().find(|top| top.serial == serial).and_then(|top| top.path.file_name());
            top.ok_or_else(|| bad_input("the branch", format!("it names no top of the disk `{serial}`")))
        };
        if tops.len() != disk.own.len() + 1 {
            return Err(bad_input("the branch", "it names other disks than the VM has"));
        }
        let mut pins = Vec::new();
        let mut place =
            self.freeze_chain(vm, &directory, &mut disk.chain, top_of(SCRATCH_SERIAL)?, &mut pins)?;
        let scratch_below = place.below;
        let mut own_below = Vec::new();
        for own in &mut disk.own {
            let frozen =
                self.freeze_chain(vm, &directory, &mut own.chain, top_of(&own.serial)?, &mut pins)?;
            own_below.push(frozen.below);
            place.changed |= frozen.changed;
            if let (None, Some(home)) = (&own.base, &mut own.home) {
                let id = self.ground.fresh_id(|id| {
                    exists(&self.ground.raw_layer_path(id)) || exists(&self.ground.layer_path(id))
                });
                pins.push(self.ground.pins.pin(layer_key(&id)));
                self.copy_home(&id, own.bytes, home, cancel)?;
                own.base = Some(id);
                place.changed = true;
            }
        }
        if place.is_current && disk.memory_base.as_deref() != memory_base {
            disk.memory_base = memory_base.map(str::to_owned);
            place.changed = true;
        }
        if place.changed {
            // Before the manifest: it must not name a layer whose name a crash of the host takes away.
            sync_directory(&self.ground.directories.layers)?;
            self.vms.write_disk(vm, &disk)?;
        }
        self.vms.remove_stray_tops(&directory, &disk)?;
        let layers = self.shared_layers(vm, &disk.chain.layers[scratch_below..], &mut pins)?;
        let mut own = Vec::new();
        for (known, below) in disk.own.into_iter().zip(own_below) {
            let base = known.base.ok_or_else(|| {
                bad_input("the branch", format!("the disk `{}` has nothing below its layers", known.serial))
            })?;
            pins.push(self.ground.pins.pin(layer_key(&base)));
            own.push(FrozenOwn {
                layers: self.shared_layers(vm, &known.chain.layers[below..], &mut pins)?,
                serial: known.serial,
                bytes: known.bytes,
                base,
                home: known.home.map(|home| home.path),
            });
        }
        let (disk_mib, base, memory_parent) = (disk.disk_mib, disk.base, disk.memory_parent);
        Ok(FrozenDisk { disk_mib, base, layers, own, memory_parent, pins })
    }

    /// Gives what lies below one top its place among the layers.
    fn freeze_chain(
        &self,
        vm: &VmId,
        directory: &Utf8Path,
        chain: &mut Chain,
        top: &str,
        pins: &mut Vec<Pin>,
    ) -> Result<FrozenChain, StorageError> {
        let place = if chain.top == top {
            Some(0)
        } else {
            chain.pending.iter().position(|name| name == top).map(|index| index + 1)
        };
        let Some(kept) = place else {
            // It is a layer itself by now: a later branch was kept earlier.
            let index = layer_of_top(top).and_then(|id| chain.layers.iter().position(|layer| layer == id));
            let Some(index) = index else {
                return Err(bad_input("the branch", format!("VM {vm} has no top `{top}` any more")));
            };
            return Ok(FrozenChain { below: index + 1, changed: false, is_current: false });
        };
        let old = chain.pending.split_off(kept);
        let mut frozen = Vec::new();
        for name in &old {
            let id = match layer_of_top(name) {
                Some(id) => id.to_owned(),
                None => self.ground.fresh_id(|id| exists(&self.ground.layer_path(id))),
            };
            // Before it exists, so that it is never seen without a user.
            pins.push(self.ground.pins.pin(layer_key(&id)));
            self.link_layer(&directory.join(name), &id)?;
            frozen.push(id);
        }
        chain.layers.splice(0..0, frozen);
        Ok(FrozenChain { below: 0, changed: !old.is_empty(), is_current: true })
    }

    /// Pins layers, and leaves out those to which nothing was written between two branches: nobody new needs them.
    fn shared_layers(
        &self,
        vm: &VmId,
        ids: &[String],
        pins: &mut Vec<Pin>,
    ) -> Result<Vec<String>, StorageError> {
        let mut layers = Vec::new();
        for id in ids {
            pins.push(self.ground.pins.pin(layer_key(id)));
            let path = self.ground.layer_path(id);
            if !exists(&path) {
                return Err(damaged(format!("the disk of VM {vm}"), format!("its layer {path} is missing")));
            }
            if !super::qcow2::is_empty_overlay(&path)? {
                layers.push(id.clone());
            }
        }
        Ok(layers)
    }

    /// The top called `top` holds all that was below it. The layers are left to the collector.
    pub(crate) fn note_flattened(&self, vm: &VmId, top: &str) -> Result<(), StorageError> {
        let lock = self.ground.disk_lock(vm);
        let _alone = lock.hold();
        let mut disk = self.vms.read_disk(vm)?;
        if !disk.chains_mut().any(|chain| chain.flattened_to(top)) {
            return Err(bad_input("the disk", format!("VM {vm} has no top `{top}` any more")));
        }
        self.vms.write_disk(vm, &disk)?;
        self.vms.remove_stray_tops(&self.ground.vm_path(vm), &disk)
    }

    /// Gives an old top its place among the layers; done already is fine. Both names are the same file until the old one
    /// goes.
    fn link_layer(&self, old: &Utf8Path, id: &str) -> Result<(), StorageError> {
        let layer = self.ground.layer_path(id);
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

impl VmDisks {
    /// A name for a new top that neither a file nor a layer has.
    pub(crate) fn fresh_top(&self, directory: &Utf8Path) -> String {
        top_name(
            &self
                .ground
                .fresh_id(|id| exists(&directory.join(top_name(id))) || exists(&self.ground.layer_path(id))),
        )
    }

    /// Writes the empty tops that a new manifest names.
    pub(crate) fn write_tops(&self, directory: &Utf8Path, disk: &DiskManifest) -> Result<(), StorageError> {
        let base = self.ground.directories.scratch_base.join(&disk.base);
        write_top(&directory.join(&disk.chain.top), u64::from(disk.disk_mib) << 20, base.as_str())?;
        for own in &disk.own {
            write_top(&directory.join(&own.chain.top), own.bytes, OWN_BACKING)?;
        }
        Ok(())
    }
}
