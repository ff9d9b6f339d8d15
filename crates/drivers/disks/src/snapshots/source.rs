//! Makes a snapshot ready for children.

use std::sync::Arc;

use microvm_durable::cancel::Cancel;
use microvm_durable::error::{bad_input, io_error};
use microvm_durable::files::exists;
use microvm_ports::StorageError;
use microvm_ports::branch::MemoryPages;
use microvm_ports::capabilities::MemoryShape;
use microvm_ports::snapshot::BranchSource;
use microvm_ports::state_parts::{PartName, StateParts};
use microvm_types::SnapshotId;

use super::fork_point::{ReadyMemory, inject, machines};
use super::handle::SourceHandle;
use super::manifest::{LayerPart, SnapshotManifest, StatePart};
use super::memory_base::base_name;
use super::open_memory::{Bases, gather};
use super::part::Part;
use super::view::{Overlay, View};
use super::{Children, Memories, Records};
use crate::ground::{Pin, layer_key, memory_key};
use crate::vms::tops::FrozenOwn;

fn ids(layers: Vec<LayerPart>) -> Vec<String> {
    layers.into_iter().map(|layer| layer.id).collect()
}

impl Children {
    pub(crate) fn snapshot_source(
        &self,
        id: &SnapshotId,
        count: usize,
        load: MemoryShape,
        cancel: &Cancel,
    ) -> Result<BranchSource, StorageError> {
        self.records.or_unknown(id, self.find_source(id, count, load, cancel))
    }

    fn find_source(
        &self,
        id: &SnapshotId,
        count: usize,
        load: MemoryShape,
        cancel: &Cancel,
    ) -> Result<BranchSource, StorageError> {
        let snapshot = self.records.snapshot_manifest(id)?;
        let mut pins: Vec<Pin> = self
            .records
            .snapshot_layers(&snapshot)
            .map(|(layer, _)| self.ground.pins.pin(layer_key(&layer.id)))
            .collect();
        let parts = self.records.state_parts(&snapshot)?;
        self.records.check_layers(&snapshot, cancel)?;
        let shape = snapshot.description.memory;
        let memory = self.memories.ready_memory(&snapshot, machines(count, load), &mut pins, cancel)?;
        // What was pinned before it was looked at is whole; was the snapshot removed just before, say so.
        self.records.snapshot_manifest(id)?;
        Ok(BranchSource {
            description: snapshot.description,
            parts,
            handle: Arc::new(SourceHandle {
                disk_mib: snapshot.disk.disk_mib,
                base: snapshot.disk.base,
                layers: ids(snapshot.disk.layers),
                own: snapshot
                    .own_disks
                    .into_iter()
                    .map(|disk| FrozenOwn {
                        serial: disk.serial,
                        bytes: disk.bytes,
                        base: disk.base.id,
                        layers: ids(disk.layers),
                        home: disk.home,
                    })
                    .collect(),
                memory_base: memory.name.clone(),
                memory_parent: Some(snapshot.id),
                _pins: pins,
            }),
            memory: memory.give(shape, load)?,
        })
    }
}

impl Records {
    /// Turns a failure into "unknown snapshot" if the snapshot was removed meanwhile.
    pub(crate) fn or_unknown<T>(
        &self,
        id: &SnapshotId,
        result: Result<T, StorageError>,
    ) -> Result<T, StorageError> {
        match result {
            Err(_) if !exists(&self.ground.snapshot_path(id)) => {
                Err(StorageError::UnknownSnapshot(id.to_string()))
            }
            other => other,
        }
    }

    /// Everything but memory and disks, verified.
    pub(crate) fn state_parts(&self, snapshot: &SnapshotManifest) -> Result<StateParts, StorageError> {
        let directory = self.ground.snapshot_path(&snapshot.id);
        let read = |state: StatePart<'_>| {
            let path = directory.join(state.file_name());
            let bytes = match std::fs::read(&path) {
                // Its damage is told as missing bytes.
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
                other => other.map_err(io_error("reading", &path))?,
            };
            if let Some(found) = state.part.damage(&state.label(), &Part::of_like(&bytes, state.part)) {
                return Err(found.of(&snapshot.id));
            }
            let name: PartName =
                state.name.parse().map_err(|error| bad_input("the snapshot", format!("{error}")))?;
            Ok((name, bytes.into()))
        };
        snapshot.state().map(read).collect()
    }

    fn check_layers(&self, snapshot: &SnapshotManifest, cancel: &Cancel) -> Result<(), StorageError> {
        for (layer, path) in self.snapshot_layers(snapshot) {
            let part = format!("disk/{}", layer.id);
            let found = layer.file.find_damage(&part, &path, &self.ground.layer_sums(&layer.id), cancel)?;
            if let Some(found) = found {
                return Err(found.of(&snapshot.id));
            }
        }
        Ok(())
    }
}

impl Memories {
    fn ready_memory(
        &self,
        snapshot: &SnapshotManifest,
        count: usize,
        pins: &mut Vec<Pin>,
        cancel: &Cancel,
    ) -> Result<ReadyMemory, StorageError> {
        let own = base_name(snapshot.id.as_str());
        // Before it exists, so that it is never seen without a user.
        pins.push(self.ground.pins.pin(memory_key(&own)));
        let view = self.open_memory(snapshot, Bases::Use, cancel)?;
        if let Some(ready) = self.whole_memory(&view) {
            return Ok(ready);
        }
        let changed: u64 = view.overlays.iter().map(Overlay::content_bytes).sum();
        if inject(changed, view.size()?, count) {
            let base = match &view.base {
                None => Some((None, self.zero_memory_file(snapshot.description.memory_mib)?)),
                Some(base) => {
                    let pin = self.ground.pins.pin(memory_key(&base.name));
                    self.touch_base(base);
                    // It may have been collected before it was pinned; we still read it, a child could not.
                    exists(&base.path).then(|| {
                        pins.push(pin);
                        (Some(base.name.clone()), base.path.clone())
                    })
                }
            };
            if let Some((name, path)) = base {
                return Ok(ReadyMemory { name, path, pages: gather(&view)? });
            }
        }
        let lock = self.ground.memory_lock(&own);
        let _alone = lock.hold();
        // Another may have made it while we waited.
        let view = self.open_memory(snapshot, Bases::Use, cancel)?;
        if let Some(ready) = self.whole_memory(&view) {
            return Ok(ready);
        }
        let path = self.materialise(&view, &own, cancel)?;
        Ok(ReadyMemory { name: Some(own), path, pages: MemoryPages::default() })
    }

    /// A view that is nothing but its own base.
    fn whole_memory(&self, view: &View) -> Option<ReadyMemory> {
        let base = view.base.as_ref().filter(|_| view.overlays.is_empty())?;
        self.touch_base(base);
        Some(ReadyMemory {
            name: Some(base.name.clone()),
            path: base.path.clone(),
            pages: MemoryPages::default(),
        })
    }
}
