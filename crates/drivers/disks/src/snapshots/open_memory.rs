//! Opens the memory of a snapshot, through its parents up to what is whole.

use microvm_durable::cancel::Cancel;
use microvm_ports::StorageError;
use microvm_ports::branch::{MemoryPages, PageRange};
use microvm_ports::snapshot::Damage;
use microvm_types::SnapshotId;

use super::Memories;
use super::manifest::{MEMORY, SnapshotManifest, damage};
use super::memory_base::base_name;
use super::page_file::PageFile;
use super::view::{Overlay, Place, View, byte};

/// Remembers that the packed pages were verified.
pub(crate) const MEMORY_STAMP: &str = "memory.verified.json";
/// More parents than this are never made; a longer chain is a circle.
pub(crate) const DEPTH_MAX: u32 = 64;

/// End of the search for a whole memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Bases {
    /// At a materialised base.
    Use,
    /// Only at a snapshot without a parent: everything comes from what is durable.
    Ignore,
}

impl Memories {
    /// The memory of a snapshot, its own pages and those of its parents verified. Open files: removing the snapshot
    /// meanwhile does not disturb.
    pub(crate) fn open_memory(
        &self,
        snapshot: &SnapshotManifest,
        bases: Bases,
        cancel: &Cancel,
    ) -> Result<View, StorageError> {
        let mut view = View { pages: snapshot.pages(), base: None, overlays: Vec::new() };
        let mut current = snapshot.clone();
        loop {
            // Also where a materialised base makes them unnecessary: damage of what was asked for is not passed over.
            if bases == Bases::Ignore || view.overlays.is_empty() {
                self.check_pages(&current, cancel)?;
            }
            if bases == Bases::Use
                && let Some(base) = self.open_base(&base_name(current.id.as_str()), view.pages)?
            {
                view.base = Some(base);
                return Ok(view);
            }
            if bases == Bases::Use && !view.overlays.is_empty() {
                self.check_pages(&current, cancel)?;
            }
            let path = self.ground.snapshot_path(&current.id).join(MEMORY);
            match PageFile::open(&path, view.pages)? {
                Ok(pages) => view.overlays.push(Overlay::of_file(pages)),
                Err(bad) => return Err(damage("memory", bad.0).of(&current.id)),
            }
            let Some(parent) = current.parent.clone() else { return Ok(view) };
            current = self.parent_of(&snapshot.id, &parent)?;
            if current.pages() != view.pages || view.overlays.len() > DEPTH_MAX as usize {
                let detail =
                    format!("{parent} has another size of memory, or the parents go round in a circle");
                return Err(damage("parent", detail).of(&snapshot.id));
            }
        }
    }

    fn parent_of(&self, id: &SnapshotId, parent: &SnapshotId) -> Result<SnapshotManifest, StorageError> {
        match self.records.read_snapshot(parent) {
            Ok(Ok((manifest, _))) => Ok(manifest),
            Ok(Err(found)) => Err(found.of(parent)),
            Err(StorageError::UnknownSnapshot(_)) => {
                Err(damage("parent", format!("snapshot {parent} is missing")).of(id))
            }
            Err(error) => Err(error),
        }
    }

    fn check_pages(&self, snapshot: &SnapshotManifest, cancel: &Cancel) -> Result<(), StorageError> {
        let directory = self.ground.snapshot_path(&snapshot.id);
        let found: Option<Damage> = snapshot.memory.file.find_damage(
            "memory",
            &directory.join(MEMORY),
            &directory.join(MEMORY_STAMP),
            cancel,
        )?;
        found.map_or(Ok(()), |found| Err(found.of(&snapshot.id)))
    }
}

/// The pages of a view that differ from its base, in memory.
pub(crate) fn gather(view: &View) -> Result<MemoryPages, StorageError> {
    let (mut ranges, mut data) = (Vec::new(), Vec::new());
    for range in view.covered() {
        view.resolve(range, &mut |range, place| {
            if place == Place::Zero && view.base.is_none() {
                return Ok(());
            }
            let begin = data.len();
            data.resize(begin + byte(range.count), 0);
            ranges.push(range);
            view.read_place(range, place, &mut data[begin..])
        })?;
    }
    Ok(MemoryPages { ranges: PageRange::union(ranges), data: data.into() })
}
