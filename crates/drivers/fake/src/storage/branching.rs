//! Branches of VMs turned into layers and memory, and what children and restored VMs are made of.

use std::fs;
use std::sync::Arc;

use microvm_ports::branch::{MemoryPages, StateMemory};
use microvm_ports::capabilities::MemoryShape;
use microvm_ports::snapshot::{BranchFiles, BranchSource, StateDescription};
use microvm_ports::state_parts::StateParts;
use microvm_ports::storage::{StorageError, VmStorage as _};
use microvm_types::{SnapshotId, VmId};

use crate::storage::saved::{
    Base, FakeDisk, FakeSource, Memory, Saved, SharedFile, bad_branch, memory_of, over, read_whole, whole,
};
use crate::storage::store::{FakeStorage, io, lock};
use crate::storage::vm_files::{EMPTY_DISK, SCRATCH};

/// More bytes than this are put into a file instead of into each child, as real storage does.
const INJECT_MAX: u64 = 64 << 20;

/// A branch as it is kept.
pub(crate) struct Frozen {
    pub(crate) layers: Vec<(String, Arc<SharedFile>)>,
    pub(crate) own: Vec<String>,
    pub(crate) memory: Memory,
    pub(crate) base: Option<Arc<Base>>,
    pub(crate) memory_parent: Option<SnapshotId>,
}

impl FakeStorage {
    /// Turns what lies below the overlays of a branch into layers.
    pub(crate) fn freeze(&self, saved: &mut Saved, files: &BranchFiles) -> Result<Frozen, StorageError> {
        let scratch = files.branch.disks.iter().find(|overlay| overlay.serial == SCRATCH);
        let Some(overlay) = scratch else {
            return Err(bad_branch("it must name an overlay of the scratch disk"));
        };
        let name = overlay.path.file_name().unwrap_or_default();
        let zero = self.zero_path(files.description.memory_mib);
        let none = Memory::new();
        let (base, memory) = match &files.branch.memory {
            StateMemory::Pages { base: path, pages } => {
                let base = saved.bases.iter().find(|base| base.file.0 == *path).cloned();
                if base.is_none() && *path != zero {
                    return Err(bad_branch("its memory base is not known"));
                }
                let below = base.as_ref().map_or(&none, |base| &base.memory);
                let memory = memory_of(below, pages, files.description.memory_mib)?;
                (base, memory)
            }
            StateMemory::File(path) => (None, whole(path, files.description.memory_mib, files.branch.ended)?),
            StateMemory::Sparse { changes, previous } => {
                let memory_mib = files.description.memory_mib;
                let below = match previous {
                    Some(previous) => read_whole(previous, memory_mib)?,
                    None => none,
                };
                (None, over(below, changes, memory_mib)?)
            }
            StateMemory::Inside => (None, none),
        };
        let directory = self.vm_directory(&files.vm);
        let number = saved.next();
        let disk = saved.disks.entry(files.vm.clone()).or_default();
        disk.memory_base.clone_from(&base);
        let kept = if disk.overlay.as_deref() == Some(name) {
            Some(0)
        } else {
            disk.pending.iter().position(|pending| pending == name).map(|index| index + 1)
        };
        let skip = match kept {
            Some(kept) => {
                for (index, old) in disk.pending.split_off(kept).into_iter().enumerate().rev() {
                    let (from, to) = (
                        directory.join(&old),
                        self.shared.root.join("layers").join(format!("{number}-{index}")),
                    );
                    fs::rename(&from, &to).map_err(io("freezing", &from))?;
                    disk.layers.insert(0, (old, Arc::new(SharedFile(to))));
                }
                0
            }
            None => match disk.layers.iter().position(|(old, _)| old == name) {
                Some(index) => index + 1,
                None => return Err(bad_branch("its overlay is not one of the VM's")),
            },
        };
        let layers = disk.layers[skip..].to_vec();
        let own = disk.own.iter().map(|(serial, _)| serial.clone()).collect();
        Ok(Frozen { layers, own, memory, base, memory_parent: disk.memory_parent.clone() })
    }

    pub(crate) fn source(
        &self,
        saved: &mut Saved,
        snapshot: (&StateDescription, &StateParts),
        frozen: Frozen,
        pages: MemoryPages,
        (count, load): (usize, MemoryShape),
    ) -> Result<BranchSource, StorageError> {
        let (description, parts) = snapshot;
        let inside = description.memory == MemoryShape::InsideState;
        if inside != (load == MemoryShape::InsideState) {
            return Err(bad_branch("another kind of hypervisor saved its memory"));
        }
        let all = pages.len().saturating_mul(count.max(1) as u64);
        let whole = (frozen.memory.len() * microvm_ports::branch::PAGE_SIZE) as u64;
        let few = all <= INJECT_MAX && all <= whole && load == MemoryShape::PagesOverBase;
        let (base, pages) = if few || inside {
            (frozen.base, pages)
        } else {
            let directory = self.shared.root.join("memory");
            let base = saved.materialise(&directory, description.memory_mib, frozen.memory)?;
            (Some(base), MemoryPages::default())
        };
        let zero = || self.zero_path(description.memory_mib);
        let file = base.as_ref().map_or_else(zero, |base| base.file.0.clone());
        Ok(BranchSource {
            description: description.clone(),
            parts: parts.clone(),
            memory: match load {
                MemoryShape::InsideState => StateMemory::Inside,
                MemoryShape::PagesOverBase => StateMemory::Pages { base: file, pages },
                MemoryShape::WholeFile => StateMemory::File(file),
                MemoryShape::SparseFileOverPrevious => {
                    return Err(bad_branch("no machine is launched from changes only"));
                }
            },
            handle: Arc::new(FakeSource {
                layers: frozen.layers,
                own: frozen.own,
                base,
                memory_parent: frozen.memory_parent,
            }),
        })
    }

    /// Parts of the disk of a VM from `source`; its overlay is made.
    pub(crate) fn disk_from(&self, vm: &VmId, source: &BranchSource) -> Result<FakeDisk, StorageError> {
        let Some(source) = source.handle.downcast_ref::<FakeSource>() else {
            return Err(bad_branch("its source is of another storage"));
        };
        let new_overlay = || {
            let name = format!("scratch-{}.qcow2", lock(&self.shared.saved).next());
            let path = self.vm_directory(vm).join(&name);
            fs::write(&path, EMPTY_DISK).map_err(io("writing", &path))?;
            Ok::<_, StorageError>(name)
        };
        let own = source.own.iter().map(|serial| Ok((serial.clone(), new_overlay()?)));
        Ok(FakeDisk {
            overlay: Some(new_overlay()?),
            own: own.collect::<Result<_, StorageError>>()?,
            copies: true,
            pending: Vec::new(),
            layers: source.layers.clone(),
            memory_base: source.base.clone(),
            memory_parent: source.memory_parent.clone(),
        })
    }
}
