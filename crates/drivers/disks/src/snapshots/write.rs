//! Keeps a branch as a durable snapshot.

use std::collections::BTreeMap;

use camino::Utf8Path;
use microvm_durable::cancel::Cancel;
use microvm_durable::error::{bad_input, io_error};
use microvm_durable::files::{exists, make_directory, sync_directory, write_new};
use microvm_ports::capabilities::MemoryShape;
use microvm_ports::snapshot::{BranchFiles, SnapshotInfo, StateDescription};
use microvm_ports::{Progress, StateParts, StorageError};
use microvm_types::{SnapshotId, VmId};

use super::difference::difference;
use super::fork_point::forget_saved;
use super::manifest::{
    DiskPart, LAYERS_MAX, LayerPart, MEMORY, MemoryPart, OwnDiskPart, SnapshotManifest, StatePart,
    check_description,
};
use super::open_memory::{Bases, DEPTH_MAX, MEMORY_STAMP};
use super::page_file::{PAGE, content_pages};
use super::part::{Part, measure, remember};
use super::uses::write_described;
use super::view::View;
use super::write_pages::{packed_length, write_pages};
use super::{Records, Writer};
use crate::ground::{Pin, memory_key, snapshot_key};
use crate::vms::tops::{FrozenDisk, FrozenOwn};

/// The parts of a state have some 100 KiB, and as much as the guest's memory where that is inside; more than this is not one.
pub(crate) const STATE_MAX: u64 = 256 << 20;
/// Room for the small files, and for what the file system needs.
pub(crate) const SPARE: u64 = 1 << 20;

/// The snapshot that a new one builds on, kept from removal while that is written.
struct Parent {
    id: SnapshotId,
    depth: u32,
    view: View,
    _pin: Pin,
}

fn is_possible(parts: &StateParts) -> bool {
    parts.is_possible() && parts.len() <= STATE_MAX
}

/// Form of a memory as it is kept: packed pages, unless nobody but its VMM can read it.
fn kept_shape(files: &BranchFiles) -> MemoryShape {
    match files.branch.memory.shape() {
        MemoryShape::InsideState => MemoryShape::InsideState,
        MemoryShape::PagesOverBase | MemoryShape::WholeFile | MemoryShape::SparseFileOverPrevious => {
            MemoryShape::PagesOverBase
        }
    }
}

impl Writer {
    pub(crate) fn write_snapshot(
        &self,
        id: &SnapshotId,
        files: &BranchFiles,
        full: bool,
        cancel: &Cancel,
        progress: &Progress,
    ) -> Result<SnapshotInfo, StorageError> {
        check_description(&files.description)?;
        if files.description.memory_mib == 0 || !is_possible(&files.branch.parts) {
            return Err(bad_input("the branch", "it has no memory, or no state, or one that is too large"));
        }
        if exists(&self.ground.snapshot_path(id)) {
            return Err(StorageError::NameTaken(id.to_string()));
        }
        let base = self.memories.base_of(files)?;
        let _base_pin = base.as_deref().map(|name| self.ground.pins.pin(memory_key(name)));
        let frozen = self.tops.freeze(&files.vm, &files.branch.disks, base.as_deref(), cancel)?;
        let layers = frozen.layers.len() + frozen.own.iter().map(|own| own.layers.len() + 1).sum::<usize>();
        if layers > LAYERS_MAX {
            let detail = format!("they have {layers} layers, {LAYERS_MAX} are possible");
            return Err(bad_input("its disks", detail));
        }
        let view = self.memories.branch_view(files, base.as_deref())?;
        // Only the manifest names a parent; without one the snapshot is larger and as good.
        let parent = if full { None } else { self.find_parent(&frozen, view.pages, cancel) };
        progress.step("finding changed memory");
        let mut runs = difference(&view, parent.as_ref().map(|parent| &parent.view), cancel)?;
        // Nothing in common worth depending on another.
        let parent = match parent {
            Some(parent) if content_pages(&runs) * PAGE >= view.size()?.max(1) => {
                runs = difference(&view, None, cancel)?;
                drop(parent);
                None
            }
            other => other,
        };
        let parts = &files.branch.parts;
        let needed = packed_length(&runs) + parts.len() + SPARE;
        let _room =
            self.ground.room.require(&self.ground.directories.snapshots, needed, "writing the snapshot")?;

        let workspace = self.ground.workspace()?;
        let new = workspace.join("snapshot");
        make_directory(&new, 0o700)?;
        let (mut device_state, mut state_parts) = (None, BTreeMap::new());
        for (name, content) in parts.iter() {
            let part = Part::of(content);
            let state = StatePart { name: name.as_str(), part: &part };
            write_new(&new.join(state.file_name()), 0o400, content)?;
            if name.as_str() == StateParts::DEVICE_STATE {
                device_state = Some(part);
            } else {
                state_parts.insert(name.clone(), part);
            }
        }
        let pages = new.join(MEMORY);
        let memory = write_pages(&pages, &view, &runs, cancel, progress)?;
        remember(&pages, &memory, &new.join(MEMORY_STAMP));
        let manifest = SnapshotManifest {
            id: id.clone(),
            parent: parent.as_ref().map(|parent| parent.id.clone()),
            description: StateDescription { memory: kept_shape(files), ..files.description.clone() },
            device_state,
            state_parts,
            memory: MemoryPart {
                file: memory,
                content_bytes: content_pages(&runs) * PAGE,
                depth: parent.as_ref().map_or(0, |parent| parent.depth + 1),
            },
            disk: self.seal_disk(&frozen, cancel, progress)?,
            own_disks: self.seal_own(&frozen, cancel, progress)?,
        };
        // Whatever may fail of describing it fails before it is there: who is told that it failed may remove it.
        let mut references = self.catalog.references()?;
        for (layer, _) in self.records.snapshot_layers(&manifest) {
            *references.layers.entry(layer.id.clone()).or_default() += 1;
        }
        let sha256 = self.records.publish_snapshot(&new, &manifest, cancel)?;
        if let Err(error) = forget_saved(files) {
            tracing::warn!(snapshot = %id, %error, "the file that its machine saved stays until the next save or the end of the VM");
        }
        self.note_parent(&files.vm, id);
        Ok(self.catalog.info(manifest, sha256, &references))
    }

    fn seal_disk(
        &self,
        frozen: &FrozenDisk,
        cancel: &Cancel,
        progress: &Progress,
    ) -> Result<DiskPart, StorageError> {
        let layers = self.seal_layers(&frozen.layers, cancel, progress)?;
        let base = self.ground.directories.scratch_base.join(&frozen.base);
        let base_sha256 = self.scratch.verify_scratch_base(&base)?;
        Ok(DiskPart { disk_mib: frozen.disk_mib, base: frozen.base.clone(), base_sha256, layers })
    }

    fn seal_own(
        &self,
        frozen: &FrozenDisk,
        cancel: &Cancel,
        progress: &Progress,
    ) -> Result<Vec<OwnDiskPart>, StorageError> {
        let seal = |own: &FrozenOwn| {
            Ok(OwnDiskPart {
                serial: own.serial.clone(),
                bytes: own.bytes,
                base: self.seal_layer(&own.base, &self.ground.raw_layer_path(&own.base), cancel)?,
                layers: self.seal_layers(&own.layers, cancel, progress)?,
                home: own.home.clone(),
            })
        };
        frozen.own.iter().map(seal).collect()
    }

    fn seal_layers(
        &self,
        ids: &[String],
        cancel: &Cancel,
        progress: &Progress,
    ) -> Result<Vec<LayerPart>, StorageError> {
        let seal = |(done, id): (usize, &String)| {
            progress.advance("sealing the disk", done as u64, Some(ids.len() as u64));
            self.seal_layer(id, &self.ground.layer_path(id), cancel)
        };
        ids.iter().enumerate().map(seal).collect()
    }

    /// Makes a layer durable and takes its checksums.
    fn seal_layer(&self, id: &str, path: &Utf8Path, cancel: &Cancel) -> Result<LayerPart, StorageError> {
        std::fs::File::open(path).and_then(|layer| layer.sync_all()).map_err(io_error("syncing", path))?;
        // Layers are shared by many snapshots: hashed once, their sums are kept beside them.
        let file = measure(path, None, &self.ground.layer_sums(id), cancel)?;
        Ok(LayerPart { id: id.to_owned(), file })
    }

    /// The snapshot that the VM stems from, if it is there, sound, of the same size, and not at the end of a long chain.
    fn find_parent(&self, frozen: &FrozenDisk, pages: u64, cancel: &Cancel) -> Option<Parent> {
        let id = frozen.memory_parent.clone()?;
        // First the pin, then the look: whoever removes it looks for pins.
        let pin = self.ground.pins.pin(snapshot_key(&id));
        let found = self.records.snapshot_manifest(&id).and_then(|manifest| {
            if manifest.pages() != pages || manifest.memory.depth >= DEPTH_MAX {
                return Ok(None);
            }
            let view = self.memories.open_memory(&manifest, Bases::Use, cancel)?;
            Ok(Some(Parent { depth: manifest.memory.depth, id: id.clone(), view, _pin: pin }))
        });
        match found {
            Ok(parent) => parent,
            Err(StorageError::UnknownSnapshot(_)) => None,
            Err(error) => {
                tracing::warn!(%error, "the snapshot becomes whole in itself, its parent cannot be used");
                None
            }
        }
    }

    /// The VM's next snapshot builds on this one. If that cannot be noted it becomes larger, nothing else.
    fn note_parent(&self, vm: &VmId, id: &SnapshotId) {
        let lock = self.ground.disk_lock(vm);
        let _alone = lock.hold();
        let noted = self.vms.read_disk(vm).and_then(|mut disk| {
            disk.memory_parent = Some(id.clone());
            self.vms.write_disk(vm, &disk)
        });
        if let Err(error) = noted
            && exists(&self.ground.vm_path(vm))
        {
            tracing::warn!(%error, %vm, "the next snapshot of this VM does not build on its last");
        }
    }
}

impl Records {
    /// Writes the manifest and gives the directory its place.
    pub(crate) fn publish_snapshot(
        &self,
        new: &Utf8Path,
        manifest: &SnapshotManifest,
        cancel: &Cancel,
    ) -> Result<String, StorageError> {
        let sha256 = write_described(&new.join(super::manifest::MANIFEST), manifest)?;
        sync_directory(new)?;
        cancel.check()?;
        let target = self.ground.snapshot_path(&manifest.id);
        match std::fs::rename(new, &target) {
            // Directory not empty, or exists.
            Err(error) if matches!(error.raw_os_error(), Some(17 | 39)) => {
                return Err(StorageError::NameTaken(manifest.id.to_string()));
            }
            other => other.map_err(io_error("renaming to", &target))?,
        }
        if let Err(error) = sync_directory(&self.ground.directories.snapshots) {
            // Whoever is told that it failed does not know of it; the first error is the one to tell.
            let _ = std::fs::rename(&target, new);
            return Err(error);
        }
        Ok(sha256)
    }
}
