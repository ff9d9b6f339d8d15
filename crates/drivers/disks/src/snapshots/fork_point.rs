//! Makes a branch ready for children.

use std::sync::Arc;

use camino::Utf8PathBuf;
use microvm_durable::cancel::Cancel;
use microvm_durable::error::bad_input;
use microvm_durable::files::exists;
use microvm_ports::StorageError;
use microvm_ports::branch::MemoryPages;
use microvm_ports::snapshot::{BranchFiles, BranchSource};

use super::handle::SourceHandle;
use super::memory_base::base_name;
use super::page_file::PAGE;
use super::view::{Overlay, View};
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

/// True if copying so many changed bytes into each child is cheaper than writing a base for all of them.
pub(crate) fn inject(changed: u64, whole: u64, count: usize) -> bool {
    let all = changed.saturating_mul(count.max(1) as u64);
    all <= INJECT_MAX && all <= whole
}

impl Memories {
    /// The memory of a branch.
    pub(crate) fn branch_view(&self, files: &BranchFiles, base: Option<&str>) -> Result<View, StorageError> {
        let pages = (u64::from(files.description.memory_mib) << 20) / PAGE;
        let base = match base {
            None => None,
            Some(name) => Some(self.open_base(name, pages)?.ok_or_else(|| {
                microvm_durable::error::damaged(
                    format!("the memory of VM {}", files.vm),
                    format!("{name} is missing"),
                )
            })?),
        };
        let overlay = Overlay::of_branch(&files.branch.pages, pages)?;
        Ok(View { pages, base, overlays: vec![overlay] })
    }
}

impl Children {
    pub(crate) fn fork_point(
        &self,
        files: &BranchFiles,
        count: usize,
        cancel: &Cancel,
    ) -> Result<BranchSource, StorageError> {
        if files.description.memory_mib == 0 {
            return Err(bad_input("the branch", "it has no memory"));
        }
        let name = self.memories.base_of_path(&files.memory_base)?;
        let mut pins: Vec<Pin> = name.iter().map(|name| self.ground.pins.pin(memory_key(name))).collect();
        let frozen = self.tops.freeze(&files.vm, &files.tops, name.as_deref(), cancel)?;
        pins.extend(frozen.pins);
        let view = self.memories.branch_view(files, name.as_deref())?;
        let memory = if inject(files.branch.pages.len(), view.size()?, count) {
            let path = match &view.base {
                Some(base) => base.path.clone(),
                None => self.memories.zero_memory_file(files.description.memory_mib)?,
            };
            ReadyMemory { name, path, pages: files.branch.pages.clone() }
        } else {
            let id = self.ground.fresh_id(|id| exists(&self.ground.directories.memory.join(base_name(id))));
            let name = base_name(&id);
            pins.push(self.ground.pins.pin(memory_key(&name)));
            let path = self.memories.materialise(&view, &name, cancel)?;
            ReadyMemory { name: Some(name), path, pages: MemoryPages::default() }
        };
        Ok(BranchSource {
            description: files.description.clone(),
            device_state: files.branch.device_state.clone(),
            memory_base: memory.path,
            pages: memory.pages,
            handle: Arc::new(SourceHandle {
                disk_mib: frozen.disk_mib,
                base: frozen.base,
                layers: frozen.layers,
                own: frozen.own,
                memory_base: memory.name,
                memory_parent: frozen.memory_parent,
                _pins: pins,
            }),
        })
    }
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
