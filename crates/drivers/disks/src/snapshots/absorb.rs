//! Removes a snapshot that others build on, without harm to them.

use microvm_durable::cancel::Cancel;
use microvm_durable::error::{errno, io_error};
use microvm_durable::files::{exists, make_directory, require_space, sync_directory};
use microvm_ports::snapshot::SnapshotInfo;
use microvm_ports::{Progress, StorageError};
use microvm_types::SnapshotId;
use rustix::fs::{CWD, RenameFlags, renameat_with};

use super::Writer;
use super::difference::difference;
use super::manifest::{MEMORY, MemoryPart, SnapshotManifest};
use super::open_memory::{Bases, MEMORY_STAMP};
use super::page_file::{PAGE, content_pages};
use super::part::remember;
use super::uses::write_described;
use super::write::SPARE;
use super::write_pages::{packed_length, write_pages};
use crate::ground::snapshot_key;

impl Writer {
    /// Every child gets what it needs of `id` and builds on the parent of `id` from then on; each is whole at every moment.
    pub(crate) fn absorb_snapshot(
        &self,
        id: &SnapshotId,
        cancel: &Cancel,
        progress: &Progress,
    ) -> Result<Vec<SnapshotInfo>, StorageError> {
        if !exists(&self.ground.snapshot_path(id)) {
            return Ok(Vec::new());
        }
        let gone = self.records.snapshot_manifest(id)?;
        let mut references = self.catalog.references()?;
        references.require_known_users(id)?;
        let children = references.parents.remove(id).unwrap_or_default();
        let mut changed = Vec::new();
        for (done, child) in children.iter().enumerate() {
            progress.advance("writing what others need of it", done as u64, Some(children.len() as u64));
            // Nobody begins to build on the child while it changes, or removes it.
            let _pin = self.ground.pins.pin(snapshot_key(child));
            let child = self.records.snapshot_manifest(child)?;
            let (manifest, sha256) = self.build_on(child, gone.parent.as_ref(), cancel, progress)?;
            changed.push((manifest, sha256));
        }
        // Last: until here each child finds what it builds on, whenever this breaks off.
        self.catalog.remove_snapshot(id)?;
        changed.into_iter().map(|(manifest, sha256)| self.catalog.snapshot_info(manifest, sha256)).collect()
    }

    /// Writes a snapshot anew with another parent, in place of the old one by one exchange of names.
    fn build_on(
        &self,
        snapshot: SnapshotManifest,
        parent: Option<&SnapshotId>,
        cancel: &Cancel,
        progress: &Progress,
    ) -> Result<(SnapshotManifest, String), StorageError> {
        let parent = parent.map(|parent| self.records.snapshot_manifest(parent)).transpose()?;
        // From what is durable and verified on the way: a materialised base is only a cache.
        let view = self.memories.open_memory(&snapshot, Bases::Ignore, cancel)?;
        let below = parent
            .as_ref()
            .map(|parent| self.memories.open_memory(parent, Bases::Ignore, cancel))
            .transpose()?;
        let runs = difference(&view, below.as_ref(), cancel)?;
        require_space(
            &self.ground.directories.snapshots,
            packed_length(&runs) + SPARE,
            "removing the snapshot",
        )?;
        let workspace = self.ground.workspace()?;
        let new = workspace.join("snapshot");
        make_directory(&new, 0o700)?;
        let old = self.ground.snapshot_path(&snapshot.id);
        for part in snapshot.state() {
            let state = new.join(part.file_name());
            // Linked and not copied: a part never changes once it is written.
            std::fs::hard_link(old.join(part.file_name()), &state).map_err(io_error("linking", &state))?;
        }
        let pages = new.join(MEMORY);
        let file = write_pages(&pages, &view, &runs, cancel, progress)?;
        remember(&pages, &file, &new.join(MEMORY_STAMP));
        let manifest = SnapshotManifest {
            parent: parent.as_ref().map(|parent| parent.id.clone()),
            memory: MemoryPart {
                file,
                content_bytes: content_pages(&runs) * PAGE,
                depth: parent.as_ref().map_or(0, |parent| parent.memory.depth + 1),
            },
            ..snapshot
        };
        let sha256 = write_described(&new.join(super::manifest::MANIFEST), &manifest)?;
        sync_directory(&new)?;
        cancel.check()?;
        renameat_with(CWD, new.as_std_path(), CWD, old.as_std_path(), RenameFlags::EXCHANGE)
            .map_err(errno("exchanging", &old))?;
        sync_directory(&self.ground.directories.snapshots)?;
        Ok((manifest, sha256))
    }
}
