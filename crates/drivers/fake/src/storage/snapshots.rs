//! The snapshot store: snapshots and fork points in memory; disks and memory bases are small files, as machines of other
//! drivers would see them.

use std::fs;
use std::sync::Arc;

use async_trait::async_trait;
use camino::Utf8Path;
use microvm_ports::branch::{DiskChange, MemoryPages};
use microvm_ports::capabilities::MemoryShape;
use microvm_ports::progress::Progress;
use microvm_ports::snapshot::{
    BranchFiles, BranchSource, Damage, ImportLimits, SnapshotInfo, SnapshotStore, StateDescription, UserDisk,
    Verified,
};
use microvm_ports::storage::{StorageError, VmFiles, VmStorage};
use microvm_types::{SnapshotId, VmId};

use crate::script::Operation;
use crate::storage::branching::Frozen;
use crate::storage::exported::Exported;
use crate::storage::saved::{Base, FakeSource, Memory, Saved, SharedFile, Snapshot, changed_bytes, pages_of};
use crate::storage::store::{FakeStorage, digest, io, lock};
use crate::storage::vm_files::{EMPTY_DISK, FIRST_OVERLAY, SCRATCH};

impl FakeStorage {
    /// Damages a part of a snapshot: it is found by verification, and the snapshot is refused from now on.
    pub fn damage_snapshot(&self, id: &SnapshotId, part: &str) {
        if let Some(snapshot) = lock(&self.shared.saved).snapshots.get_mut(id) {
            let detail = "it was damaged on purpose".to_owned();
            snapshot.damage = Some(Damage { part: part.to_owned(), first_byte: 0, end_byte: 4096, detail });
        }
    }

    fn unknown(id: &SnapshotId) -> StorageError {
        StorageError::UnknownSnapshot(id.to_string())
    }

    fn info(id: &SnapshotId, snapshot: &Snapshot) -> SnapshotInfo {
        let own: u64 = snapshot
            .layers
            .iter()
            .filter(|(_, layer)| Arc::strong_count(layer) == 1)
            .filter_map(|(_, layer)| fs::metadata(&layer.0).ok())
            .map(|metadata| metadata.len())
            .sum();
        SnapshotInfo {
            id: id.clone(),
            parent: snapshot.parent.clone(),
            description: snapshot.description.clone(),
            memory_bytes: snapshot.memory_bytes,
            own_bytes: snapshot.memory_bytes + snapshot.parts.len() + own,
            sha256: snapshot.sha256.clone(),
        }
    }

    fn add_snapshot(&self, id: &SnapshotId, mut snapshot: Snapshot) -> Result<SnapshotInfo, StorageError> {
        let text = format!("{id} {:?} {:?} {:?}", snapshot.description, snapshot.memory, snapshot.parts);
        snapshot.sha256 = digest(text.as_bytes());
        let mut saved = lock(&self.shared.saved);
        if saved.snapshots.contains_key(id) {
            return Err(StorageError::NameTaken(id.to_string()));
        }
        let info = Self::info(id, &snapshot);
        saved.snapshots.insert(id.clone(), snapshot);
        Ok(info)
    }

    fn sound(saved: &Saved, id: &SnapshotId) -> Result<Snapshot, StorageError> {
        let snapshot = saved.snapshots.get(id).ok_or_else(|| Self::unknown(id))?;
        match &snapshot.damage {
            None => Ok(snapshot.clone()),
            Some(damage) => Err(StorageError::Damaged {
                what: format!("the snapshot `{id}`"),
                detail: format!("{}: {}", damage.part, damage.detail),
            }),
        }
    }
}

#[async_trait]
impl SnapshotStore for FakeStorage {
    async fn prepare_overlays(&self, vm: &VmId, own: &[UserDisk]) -> Result<Vec<DiskChange>, StorageError> {
        let verdict = self.ask(Operation::PrepareOverlays, &self.shared.root).await?;
        self.found(vm)?;
        let directory = self.vm_directory(vm);
        let overlays = {
            let mut saved = lock(&self.shared.saved);
            let mut disk = saved.disks.get(vm).cloned().unwrap_or_default();
            let mut overlays = Vec::new();
            let mut new_overlay = |serial: &str| {
                let name = format!("scratch-{}.qcow2", saved.next());
                let path = directory.join(&name);
                fs::write(&path, EMPTY_DISK).map_err(io("writing", &path))?;
                overlays.push(DiskChange { serial: serial.to_owned(), path });
                Ok::<_, StorageError>(name)
            };
            let old = disk.overlay.replace(new_overlay(SCRATCH)?).unwrap_or_else(|| FIRST_OVERLAY.to_owned());
            disk.pending.insert(0, old);
            for (serial, overlay) in &mut disk.own {
                *overlay = new_overlay(serial)?;
            }
            for new in own {
                if disk.own.iter().all(|(serial, _)| *serial != new.serial) {
                    disk.own.push((new.serial.clone(), new_overlay(&new.serial)?));
                }
            }
            saved.disks.insert(vm.clone(), disk);
            overlays
        };
        verdict.finish().await;
        Ok(overlays)
    }

    async fn note_flattened(&self, vm: &VmId, overlay: &Utf8Path) -> Result<(), StorageError> {
        let name = overlay.file_name().unwrap_or_default();
        let mut saved = lock(&self.shared.saved);
        let disk = saved.disks.entry(vm.clone()).or_default();
        if disk.overlay.as_deref().unwrap_or(FIRST_OVERLAY) == name {
            disk.pending.clear();
            disk.layers.clear();
        } else if let Some(index) = disk.pending.iter().position(|pending| pending == name) {
            disk.pending.truncate(index + 1);
            disk.layers.clear();
        } else if let Some(index) = disk.layers.iter().position(|(old, _)| old == name) {
            disk.layers.truncate(index + 1);
        } else {
            let detail = format!("VM {vm} has no overlay `{name}` any more");
            return Err(StorageError::BadInput { what: "the disk".to_owned(), detail });
        }
        Ok(())
    }

    async fn write_snapshot(
        &self,
        id: &SnapshotId,
        files: BranchFiles,
        full: bool,
        progress: Progress,
    ) -> Result<SnapshotInfo, StorageError> {
        let verdict = self.ask(Operation::WriteSnapshot, &self.shared.root).await?;
        progress.step("making up a snapshot");
        let snapshot = {
            let mut saved = lock(&self.shared.saved);
            let frozen = self.freeze(&mut saved, &files)?;
            let parent = frozen.memory_parent.filter(|_| !full);
            let parent = parent.and_then(|id| saved.snapshots.get(&id).map(|found| (id, &found.memory)));
            let none = Memory::new();
            let memory_bytes =
                changed_bytes(&frozen.memory, parent.as_ref().map_or(&none, |(_, memory)| memory));
            Snapshot {
                parent: parent.map(|(id, _)| id),
                description: StateDescription {
                    memory: match files.branch.memory.shape() {
                        MemoryShape::InsideState => MemoryShape::InsideState,
                        _ => MemoryShape::PagesOverBase,
                    },
                    ..files.description
                },
                parts: files.branch.parts,
                memory: frozen.memory,
                memory_bytes,
                layers: frozen.layers,
                own: frozen.own,
                base: None,
                sha256: String::new(),
                damage: None,
            }
        };
        let info = self.add_snapshot(id, snapshot)?;
        if let Some(disk) = lock(&self.shared.saved).disks.get_mut(&files.vm) {
            disk.memory_parent = Some(id.clone());
        }
        verdict.finish().await;
        Ok(info)
    }

    async fn fork_point(
        &self,
        files: BranchFiles,
        count: usize,
        load: MemoryShape,
    ) -> Result<BranchSource, StorageError> {
        let verdict = self.ask(Operation::ForkPoint, &self.shared.root).await?;
        self.zero(files.description.memory_mib)?;
        let source = {
            let mut saved = lock(&self.shared.saved);
            let frozen = self.freeze(&mut saved, &files)?;
            let state = (&files.description, &files.branch.parts);
            let pages = files.branch.memory.pages().cloned().unwrap_or_else(|| pages_of(&frozen.memory));
            self.source(&mut saved, state, frozen, pages, (count, load))?
        };
        verdict.finish().await;
        Ok(source)
    }

    async fn snapshot_source(
        &self,
        id: &SnapshotId,
        count: usize,
        load: MemoryShape,
    ) -> Result<BranchSource, StorageError> {
        let verdict = self.ask(Operation::SnapshotSource, &self.shared.root).await?;
        let memory_mib = Self::sound(&lock(&self.shared.saved), id)?.description.memory_mib;
        self.zero(memory_mib)?;
        let source = {
            let mut saved = lock(&self.shared.saved);
            let snapshot = Self::sound(&saved, id)?;
            let pages =
                if snapshot.base.is_some() { MemoryPages::default() } else { pages_of(&snapshot.memory) };
            let frozen = Frozen {
                layers: snapshot.layers,
                own: snapshot.own,
                memory: snapshot.memory,
                base: snapshot.base.clone(),
                memory_parent: Some(id.clone()),
            };
            let state = (&snapshot.description, &snapshot.parts);
            let source = self.source(&mut saved, state, frozen, pages, (count, load))?;
            if let (Some(handle), Some(kept)) =
                (source.handle.downcast_ref::<FakeSource>(), saved.snapshots.get_mut(id))
            {
                kept.base.clone_from(&handle.base);
            }
            source
        };
        verdict.finish().await;
        Ok(source)
    }

    async fn create_vm_files_from(&self, vm: &VmId, source: &BranchSource) -> Result<VmFiles, StorageError> {
        let directory = self.vm_directory(vm);
        let verdict = self.ask(Operation::CreateFiles, &directory).await?;
        self.make_directory(&directory)?;
        self.mark_unfinished(&directory)?;
        let disk = self.disk_from(vm, source)?;
        lock(&self.shared.saved).disks.insert(vm.clone(), disk);
        verdict.finish().await;
        self.found(vm)
    }

    async fn reset_vm_files(&self, vm: &VmId, source: &BranchSource) -> Result<VmFiles, StorageError> {
        let verdict = self.ask(Operation::ResetFiles, &self.shared.root).await?;
        let old = self.found(vm)?;
        let disk = self.disk_from(vm, source)?;
        lock(&self.shared.saved).disks.insert(vm.clone(), disk);
        let own = old.scratch.backing.iter().filter(|path| path.parent() == Some(&old.directory));
        for path in std::iter::once(&old.scratch.path).chain(own) {
            fs::remove_file(path).map_err(io("removing", path))?;
        }
        verdict.finish().await;
        self.found(vm)
    }

    async fn snapshots(&self) -> Result<Vec<Result<SnapshotInfo, (SnapshotId, Damage)>>, StorageError> {
        let saved = lock(&self.shared.saved);
        let all = saved.snapshots.iter().map(|(id, snapshot)| match &snapshot.damage {
            // Without its manifest nothing is known of it.
            Some(damage) if damage.part == "manifest" => Err((id.clone(), damage.clone())),
            _ => Ok(Self::info(id, snapshot)),
        });
        Ok(all.collect())
    }

    async fn verify_snapshot(&self, id: &SnapshotId, _progress: Progress) -> Result<Verified, StorageError> {
        let saved = lock(&self.shared.saved);
        let snapshot = saved.snapshots.get(id).ok_or_else(|| Self::unknown(id))?;
        let damage: Vec<Damage> = snapshot.damage.iter().cloned().collect();
        // Other content has another sum.
        let stored = Self::info(id, snapshot).sha256;
        let current_sha256 = match damage.first() {
            Some(damage) => digest(damage.detail.as_bytes()),
            None => stored.clone(),
        };
        Ok(Verified { damage, stored_sha256: Some(stored), current_sha256 })
    }

    async fn remove_snapshot(&self, id: &SnapshotId) -> Result<(), StorageError> {
        let verdict = self.ask(Operation::RemoveSnapshot, &self.shared.root).await?;
        {
            let mut saved = lock(&self.shared.saved);
            let mut others = saved.snapshots.iter().filter(|(_, other)| other.parent.as_ref() == Some(id));
            if let Some((child, _)) = others.next() {
                let users = format!("snapshot {child} that builds on it");
                return Err(StorageError::InUse { name: format!("the snapshot `{id}`"), users });
            }
            saved.snapshots.remove(id);
        }
        verdict.finish().await;
        Ok(())
    }

    async fn absorb_snapshot(
        &self,
        id: &SnapshotId,
        _progress: Progress,
    ) -> Result<Vec<SnapshotInfo>, StorageError> {
        let verdict = self.ask(Operation::RemoveSnapshot, &self.shared.root).await?;
        let changed = {
            let mut saved = lock(&self.shared.saved);
            let Some(gone) = saved.snapshots.remove(id) else { return Ok(Vec::new()) };
            // Each holds its whole memory here; only what differs from the next parent is counted anew.
            let below = gone.parent.as_ref().and_then(|parent| saved.snapshots.get(parent));
            let below = below.map(|parent| parent.memory.clone()).unwrap_or_default();
            let mut changed = Vec::new();
            for (child, snapshot) in &mut saved.snapshots {
                if snapshot.parent.as_ref() == Some(id) {
                    snapshot.parent.clone_from(&gone.parent);
                    snapshot.memory_bytes = changed_bytes(&snapshot.memory, &below);
                    changed.push(child.clone());
                }
            }
            changed
        };
        verdict.finish().await;
        let saved = lock(&self.shared.saved);
        Ok(changed
            .iter()
            .filter_map(|child| saved.snapshots.get(child).map(|one| Self::info(child, one)))
            .collect())
    }

    async fn export_snapshot(
        &self,
        id: &SnapshotId,
        to: &Utf8Path,
        _progress: Progress,
    ) -> Result<u64, StorageError> {
        let snapshot = Self::sound(&lock(&self.shared.saved), id)?;
        let read =
            |(_, layer): &(String, Arc<SharedFile>)| fs::read(&layer.0).map_err(io("reading", &layer.0));
        let exported = Exported {
            description: snapshot.description,
            parts: snapshot.parts,
            memory: snapshot.memory,
            layers: snapshot.layers.iter().map(read).collect::<Result<_, _>>()?,
        };
        let bytes = exported.encode();
        let mut file =
            fs::OpenOptions::new().write(true).create_new(true).open(to).map_err(|error| {
                StorageError::BadInput { what: to.to_string(), detail: error.to_string() }
            })?;
        std::io::Write::write_all(&mut file, &bytes).map_err(io("writing", to))?;
        Ok(bytes.len() as u64)
    }

    async fn import_snapshot(
        &self,
        id: &SnapshotId,
        from: &Utf8Path,
        limits: ImportLimits,
        _progress: Progress,
    ) -> Result<SnapshotInfo, StorageError> {
        let bad = |detail: String| StorageError::BadInput { what: from.to_string(), detail };
        let bytes = fs::read(from).map_err(|error| bad(error.to_string()))?;
        let exported = Exported::decode(&bytes)
            .ok_or_else(|| bad("it is not an exported snapshot, or damaged".to_owned()))?;
        if exported.description.memory_mib > limits.memory_mib
            || exported.description.disk_mib > limits.disk_mib
        {
            return Err(bad("it is larger than the limits".to_owned()));
        }
        let mut layers = Vec::new();
        for content in exported.layers {
            let number = lock(&self.shared.saved).next();
            let path = self.shared.root.join("layers").join(format!("{number}-0"));
            fs::write(&path, content).map_err(io("writing", &path))?;
            layers.push((String::new(), Arc::new(SharedFile(path))));
        }
        let memory_bytes = changed_bytes(&exported.memory, &Memory::new());
        let snapshot = Snapshot {
            parent: None,
            description: exported.description,
            parts: exported.parts,
            memory: exported.memory,
            memory_bytes,
            layers,
            own: Vec::new(),
            base: None,
            sha256: String::new(),
            damage: None,
        };
        self.add_snapshot(id, snapshot)
    }

    async fn count_snapshot_garbage(&self, keep_memory_bytes: u64) -> Result<u64, StorageError> {
        let saved = lock(&self.shared.saved);
        let bases = || saved.snapshots.values().filter_map(|one| one.base.as_ref());
        let mut kept: u64 = bases().map(|base| base.bytes()).sum();
        let unused = saved.bases.iter().filter(|base| Arc::strong_count(base) == 1);
        let mut freed: u64 = unused.map(|base| base.bytes()).sum();
        for base in bases().filter(|base| Arc::strong_count(base) == 2) {
            if kept > keep_memory_bytes {
                kept -= base.bytes();
                freed += base.bytes();
            }
        }
        Ok(freed)
    }

    async fn collect_snapshot_garbage(&self, keep_memory_bytes: u64) -> Result<u64, StorageError> {
        let mut saved = lock(&self.shared.saved);
        // Held by the list of all and by its snapshot, but by no source and no VM.
        let idle = |base: &Arc<Base>| Arc::strong_count(base) == 2;
        let mut kept: u64 =
            saved.snapshots.values().filter_map(|one| one.base.as_ref()).map(|base| base.bytes()).sum();
        for snapshot in saved.snapshots.values_mut() {
            if kept > keep_memory_bytes
                && let Some(base) = snapshot.base.take_if(|base| idle(base))
            {
                kept -= base.bytes();
            }
        }
        let mut freed = 0;
        saved.bases.retain(|base| {
            let used = Arc::strong_count(base) > 1;
            freed += if used { 0 } else { base.bytes() };
            used
        });
        Ok(freed)
    }
}
