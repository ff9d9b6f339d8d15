//! Makes a branch ready for children.

use std::fs::File;
use std::sync::Arc;

use camino::{Utf8Path, Utf8PathBuf};
use microvm_durable::cancel::Cancel;
use microvm_durable::error::{bad_input, io_error};
use microvm_durable::files::{exists, remove_all};
use microvm_ports::StorageError;
use microvm_ports::branch::{MemoryPages, StateMemory};
use microvm_ports::capabilities::MemoryShape;
use microvm_ports::snapshot::{BranchFiles, BranchSource};

use super::handle::SourceHandle;
use super::holes;
use super::memory_base::base_name;
use super::page_file::PAGE;
use super::view::{BaseFile, Overlay, View};
use super::{Children, Memories};
use crate::ground::{Pin, memory_key};

/// More bytes than this are not copied into the memory of each child.
const INJECT_MAX: u64 = 64 << 20;

/// A memory as children are launched from it.
pub(crate) struct ReadyMemory {
    /// File name of the base; `None`: zeros.
    pub(crate) name: Option<String>,
    pub(crate) path: Utf8PathBuf,
    pub(crate) pages: MemoryPages,
}

impl ReadyMemory {
    /// This memory in the form `load`, if `saved` is a form that can be given so.
    pub(crate) fn give(self, saved: MemoryShape, load: MemoryShape) -> Result<StateMemory, StorageError> {
        let inside = MemoryShape::InsideState;
        match load {
            MemoryShape::InsideState if saved == inside => Ok(StateMemory::Inside),
            MemoryShape::PagesOverBase if saved != inside => {
                Ok(StateMemory::Pages { base: self.path, pages: self.pages })
            }
            MemoryShape::WholeFile if saved != inside && self.pages.is_empty() => {
                Ok(StateMemory::File(self.path))
            }
            _ => Err(bad_input(
                "the saved state",
                "another kind of hypervisor saved its memory: it can be loaded by that only",
            )),
        }
    }
}

/// Machines that a memory is made ready for: as many as there can be where each needs all of it in one file.
pub(crate) fn machines(count: usize, load: MemoryShape) -> usize {
    if load == MemoryShape::WholeFile { usize::MAX } else { count }
}

/// True if copying so many changed bytes into each child is cheaper than writing a base for all of them.
pub(crate) fn inject(changed: u64, whole: u64, count: usize) -> bool {
    let all = changed.saturating_mul(count.max(1) as u64);
    all <= INJECT_MAX && all <= whole
}

impl Memories {
    /// File name of the base that the pages of a branch lie over; `None`: zeros, or another form of memory.
    pub(crate) fn base_of(&self, files: &BranchFiles) -> Result<Option<String>, StorageError> {
        match &files.branch.memory {
            StateMemory::Pages { base, .. } => self.base_of_path(base),
            StateMemory::File(_) | StateMemory::Sparse { .. } | StateMemory::Inside => Ok(None),
        }
    }

    /// Refuses pages that are told by the holes of a file where the file system does not tell these exactly.
    fn check_holes(&self, changes: &Utf8Path) -> Result<(), StorageError> {
        let directory = changes.parent().unwrap_or(changes);
        let probe = directory.join(format!(".holes.{}-{}", std::process::id(), self.ground.number()));
        if holes::are_exact(&probe)? {
            return Ok(());
        }
        let detail = format!(
            "its memory was saved as changed pages in a sparse file, and the file system of {directory} does not tell holes of one \
             page: keep the root directory on one with blocks of 4 KiB (ext4, XFS, btrfs), or use another hypervisor"
        );
        Err(bad_input("the branch", detail))
    }

    /// The memory of a branch.
    pub(crate) fn branch_view(&self, files: &BranchFiles, base: Option<&str>) -> Result<View, StorageError> {
        let pages = (u64::from(files.description.memory_mib) << 20) / PAGE;
        let changed = match &files.branch.memory {
            StateMemory::Pages { pages, .. } => pages,
            StateMemory::File(path) => {
                let base = Some(open_saved(path, pages)?);
                return Ok(View { pages, base, overlays: Vec::new() });
            }
            StateMemory::Sparse { changes, previous } => {
                self.check_holes(changes)?;
                let base = previous.as_deref().map(|path| open_saved(path, pages)).transpose()?;
                let overlay = Overlay::of_sparse(open_saved(changes, pages)?)?;
                return Ok(View { pages, base, overlays: vec![overlay] });
            }
            StateMemory::Inside => return Ok(View { pages, base: None, overlays: Vec::new() }),
        };
        let base = match base {
            None => None,
            Some(name) => Some(self.open_base(name, pages)?.ok_or_else(|| {
                microvm_durable::error::damaged(
                    format!("the memory of VM {}", files.vm),
                    format!("{name} is missing"),
                )
            })?),
        };
        let overlay = Overlay::of_branch(changed, pages)?;
        Ok(View { pages, base, overlays: vec![overlay] })
    }
}

impl Children {
    pub(crate) fn fork_point(
        &self,
        files: &BranchFiles,
        count: usize,
        load: MemoryShape,
        cancel: &Cancel,
    ) -> Result<BranchSource, StorageError> {
        if files.description.memory_mib == 0 {
            return Err(bad_input("the branch", "it has no memory"));
        }
        let name = self.memories.base_of(files)?;
        // Before anything is read: the collector leaves alone what was pinned while an older user still names it.
        let mut pins: Vec<Pin> = name.iter().map(|name| self.ground.pins.pin(memory_key(name))).collect();
        let frozen = self.tops.freeze(&files.vm, &files.branch.disks, name.as_deref(), cancel)?;
        pins.extend(frozen.pins);
        let view = self.memories.branch_view(files, name.as_deref())?;
        let shape = files.branch.memory.shape();
        let injected = files
            .branch
            .memory
            .pages()
            .map(|pages| {
                Ok::<_, StorageError>(
                    inject(pages.len(), view.size()?, machines(count, load)).then_some(pages),
                )
            })
            .transpose()?
            .flatten();
        let memory = if let Some(pages) = injected {
            let path = match &view.base {
                Some(base) => base.path.clone(),
                None => self.memories.zero_memory_file(files.description.memory_mib)?,
            };
            ReadyMemory { name, path, pages: pages.clone() }
        } else if shape == MemoryShape::InsideState {
            ReadyMemory { name: None, path: Utf8PathBuf::new(), pages: MemoryPages::default() }
        } else {
            let id = self.ground.fresh_id(|id| exists(&self.ground.directories.memory.join(base_name(id))));
            let name = base_name(&id);
            pins.push(self.ground.pins.pin(memory_key(&name)));
            let path = self.memories.materialise(&view, &name, cancel)?;
            ReadyMemory { name: Some(name), path, pages: MemoryPages::default() }
        };
        // The machine itself goes on from it first.
        if !files.branch.ended {
            forget_saved(files)?;
        }
        Ok(BranchSource {
            description: files.description.clone(),
            parts: files.branch.parts.clone(),
            handle: Arc::new(SourceHandle {
                disk_mib: frozen.disk_mib,
                base: frozen.base,
                layers: frozen.layers,
                own: frozen.own,
                memory_base: memory.name.clone(),
                memory_parent: frozen.memory_parent,
                _pins: pins,
            }),
            memory: memory.give(shape, load)?,
        })
    }
}

/// Removes the file that a machine has saved its memory to: the store has what it needs of it. Files of the driver's stay.
pub(crate) fn forget_saved(files: &BranchFiles) -> Result<(), StorageError> {
    match &files.branch.memory {
        StateMemory::File(path) => remove_all(path),
        StateMemory::Pages { .. } | StateMemory::Sparse { .. } | StateMemory::Inside => Ok(()),
    }
}

/// Opens a memory that a machine has saved as a whole. Its VMM may still write to it: nothing is launched over it.
fn open_saved(path: &Utf8Path, pages: u64) -> Result<BaseFile, StorageError> {
    let file = File::open(path).map_err(io_error("opening", path))?;
    let length = file.metadata().map_err(io_error("examining", path))?.len();
    if length != pages * PAGE {
        let detail = format!("its memory has {length} bytes, {} are expected", pages * PAGE);
        return Err(bad_input("the branch", detail));
    }
    Ok(BaseFile { file, name: path.to_string(), path: path.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_pages_are_copied_and_many_are_written_once() {
        const MIB: u64 = 1 << 20;
        assert!(inject(MIB, 91 * MIB, 1) && inject(MIB, 91 * MIB, 64));
        assert!(!inject(MIB, 91 * MIB, 65), "more than 64 MiB in all");
        assert!(!inject(MIB, 20 * MIB, 21), "more than writing the base");
        assert!(!inject(90 * MIB, 90 * MIB, 1));
        assert!(inject(0, 0, 1000) && !inject(u64::MAX, u64::MAX, usize::MAX));
    }
}
