//! Saved states of the fake storage: frozen disks and memories, counted by reference.

use std::collections::BTreeMap;
use std::fs;
use std::sync::Arc;

use bytes::Bytes;
use camino::{Utf8Path, Utf8PathBuf};
use microvm_ports::StateParts;
use microvm_ports::StorageError;
use microvm_ports::branch::{MemoryPages, PAGE_SIZE, PageRange};
use microvm_ports::snapshot::{Damage, StateDescription};
use microvm_types::{SnapshotId, VmId};

use crate::holes;

/// A file that goes with its last user.
#[derive(Debug)]
pub(crate) struct SharedFile(pub(crate) Utf8PathBuf);

impl Drop for SharedFile {
    fn drop(&mut self) {
        // The whole directory goes with the storage; until then a file that stays does no harm.
        let _ = fs::remove_file(&self.0);
    }
}

/// Pages by their numbers; what is not there is zero.
pub(crate) type Memory = BTreeMap<u64, Bytes>;

/// A memory in a file.
#[derive(Debug)]
pub(crate) struct Base {
    pub(crate) file: SharedFile,
    pub(crate) memory: Memory,
}

impl Base {
    pub(crate) fn bytes(&self) -> u64 {
        (self.memory.len() * PAGE_SIZE) as u64
    }
}

/// Parts of a VM's disk beside its newest overlay.
#[derive(Debug, Clone, Default)]
pub(crate) struct FakeDisk {
    /// File name of the newest overlay; `None`: the first one.
    pub(crate) overlay: Option<String>,
    /// File names of older overlays, newest first.
    pub(crate) pending: Vec<String>,
    /// Newest first, each with the name it had as an overlay.
    pub(crate) layers: Vec<(String, Arc<SharedFile>)>,
    /// Disks that were the user's: serial number and file name of the overlay.
    pub(crate) own: Vec<(String, String)>,
    /// Those are copies: they belong to this VM alone.
    pub(crate) copies: bool,
    pub(crate) memory_base: Option<Arc<Base>>,
    pub(crate) memory_parent: Option<SnapshotId>,
}

/// One snapshot.
#[derive(Debug, Clone)]
pub(crate) struct Snapshot {
    pub(crate) parent: Option<SnapshotId>,
    pub(crate) description: StateDescription,
    pub(crate) parts: StateParts,
    pub(crate) memory: Memory,
    /// Bytes that differ from the parent.
    pub(crate) memory_bytes: u64,
    pub(crate) layers: Vec<(String, Arc<SharedFile>)>,
    /// Serial numbers of disks that were the user's.
    pub(crate) own: Vec<String>,
    /// Its memory in a file.
    pub(crate) base: Option<Arc<Base>>,
    pub(crate) sha256: String,
    pub(crate) damage: Option<Damage>,
}

/// Everything saved.
#[derive(Debug, Default)]
pub(crate) struct Saved {
    /// Makes file names differ.
    pub(crate) made: u64,
    pub(crate) disks: BTreeMap<VmId, FakeDisk>,
    pub(crate) snapshots: BTreeMap<SnapshotId, Snapshot>,
    /// Memory files of fork points and snapshots.
    pub(crate) bases: Vec<Arc<Base>>,
}

/// This storage's data in a source.
#[derive(Debug)]
pub(crate) struct FakeSource {
    pub(crate) layers: Vec<(String, Arc<SharedFile>)>,
    /// Serial numbers of disks that were the user's.
    pub(crate) own: Vec<String>,
    pub(crate) base: Option<Arc<Base>>,
    pub(crate) memory_parent: Option<SnapshotId>,
}

impl Saved {
    /// A number that was not given before.
    pub(crate) fn next(&mut self) -> u64 {
        self.made += 1;
        self.made
    }

    /// Writes a memory to a file of its own.
    pub(crate) fn materialise(
        &mut self,
        directory: &Utf8Path,
        memory_mib: u32,
        memory: Memory,
    ) -> Result<Arc<Base>, StorageError> {
        let path = directory.join(format!("{}.base", self.next()));
        let write = || -> std::io::Result<()> {
            let file = fs::File::create(&path)?;
            file.set_len(u64::from(memory_mib) << 20)?;
            for (number, content) in &memory {
                std::os::unix::fs::FileExt::write_all_at(&file, content, number * PAGE_SIZE as u64)?;
            }
            Ok(())
        };
        write().map_err(|cause| StorageError::Io { action: "writing", path: path.clone(), cause })?;
        let base = Arc::new(Base { file: SharedFile(path), memory });
        self.bases.push(Arc::clone(&base));
        Ok(base)
    }
}

/// The error for a branch that cannot be.
pub(crate) fn bad_branch(detail: &str) -> StorageError {
    StorageError::BadInput { what: "the branch".to_owned(), detail: detail.to_owned() }
}

/// Memory of a machine over `base` with changed `pages`.
pub(crate) fn memory_of(base: &Memory, pages: &MemoryPages, memory_mib: u32) -> Result<Memory, StorageError> {
    let mut memory = base.clone();
    let (mut at, mut next) = (0usize, 0);
    let all = (u64::from(memory_mib) << 20) / PAGE_SIZE as u64;
    for range in &pages.ranges {
        let end = range.first.checked_add(range.count).filter(|end| *end <= all);
        if range.first < next || range.count == 0 || end.is_none() {
            return Err(bad_branch("its pages are not in order, or not in its memory"));
        }
        next = range.end();
        for number in range.first..range.end() {
            if at + PAGE_SIZE > pages.data.len() {
                return Err(bad_branch("its content ends early"));
            }
            let content = pages.data.slice(at..at + PAGE_SIZE);
            at += PAGE_SIZE;
            if content.iter().all(|byte| *byte == 0) {
                memory.remove(&number);
            } else {
                memory.insert(number, content);
            }
        }
    }
    if at != pages.data.len() {
        return Err(bad_branch("its content is too long"));
    }
    Ok(memory)
}

/// Bytes of pages that are other than in `parent` and not zero.
pub(crate) fn changed_bytes(memory: &Memory, parent: &Memory) -> u64 {
    let changed = memory.iter().filter(|(number, content)| parent.get(number) != Some(content));
    (changed.count() * PAGE_SIZE) as u64
}

/// A memory as pages over zeros.
pub(crate) fn pages_of(memory: &Memory) -> MemoryPages {
    let mut ranges: Vec<PageRange> = Vec::new();
    let mut data = Vec::new();
    for (number, content) in memory {
        match ranges.last_mut() {
            Some(last) if last.end() == *number => last.count += 1,
            _ => ranges.push(PageRange { first: *number, count: 1 }),
        }
        data.extend_from_slice(content);
    }
    MemoryPages { ranges, data: data.into() }
}

/// A memory that a machine has saved as one file, which goes.
pub(crate) fn whole(path: &Utf8Path, memory_mib: u32, used_again: bool) -> Result<Memory, StorageError> {
    let memory = read_whole(path, memory_mib)?;
    if !used_again {
        fs::remove_file(path).map_err(|cause| reading(path, cause))?;
    }
    Ok(memory)
}

/// A memory in one file.
pub(crate) fn read_whole(path: &Utf8Path, memory_mib: u32) -> Result<Memory, StorageError> {
    let content = Bytes::from(fs::read(path).map_err(|cause| reading(path, cause))?);
    if content.len() as u64 != u64::from(memory_mib) << 20 {
        return Err(bad_branch("its memory has another size"));
    }
    let pages = (0u64..).zip((0..content.len()).step_by(PAGE_SIZE));
    let pages = pages.map(|(number, at)| (number, content.slice(at..at + PAGE_SIZE)));
    Ok(pages.filter(|(_, page)| page.iter().any(|byte| *byte != 0)).collect())
}

/// A memory with the pages of a sparse file over it.
pub(crate) fn over(mut memory: Memory, changes: &Utf8Path, memory_mib: u32) -> Result<Memory, StorageError> {
    let written = holes::pages(changes).map_err(|cause| reading(changes, cause))?;
    let content = read_whole(changes, memory_mib)?;
    for number in written {
        match content.get(&number) {
            Some(page) => memory.insert(number, page.clone()),
            None => memory.remove(&number),
        };
    }
    Ok(memory)
}

fn reading(path: &Utf8Path, cause: std::io::Error) -> StorageError {
    StorageError::Io { action: "reading", path: path.to_owned(), cause }
}
