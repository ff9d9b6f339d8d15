//! Removal of unreferenced layers and memory files.

use std::os::unix::fs::MetadataExt;
use std::sync::PoisonError;

use camino::Utf8Path;
use microvm_durable::cancel::Cancel;
use microvm_durable::files::{exists, names_in, remove_all};
use microvm_durable::workspace::remove_leftovers;
use microvm_ports::StorageError;
use microvm_types::SnapshotId;

use super::Catalog;
use super::memory_base::base_id;
use crate::ground::{layer_key, memory_key};

/// Handling of files that nothing names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sweep {
    /// They are removed.
    Remove,
    /// Their bytes are counted.
    Count,
}

impl Catalog {
    /// See [`microvm_ports::snapshot::SnapshotStore::collect_snapshot_garbage`].
    pub(crate) fn collect_snapshots(
        &self,
        keep_memory_bytes: u64,
        sweep: Sweep,
        cancel: &Cancel,
    ) -> Result<u64, StorageError> {
        let mut freed = match sweep {
            Sweep::Remove => remove_leftovers(&self.ground.directories.work)?,
            Sweep::Count => 0,
        };
        let _alone = self.collecting.lock().unwrap_or_else(PoisonError::into_inner);
        // The order matters: see `pins.rs`.
        let layers = names_in(&self.ground.directories.layers)?;
        let bases = names_in(&self.ground.directories.memory)?;
        let watch = self.ground.pins.watch();
        let references = self.references()?;
        let layers_unknown = references.layers_unknown();
        if let Some(what) = &layers_unknown {
            tracing::warn!(%what, "no layer is removed: which of them these name cannot be told. Remove or repair them");
        }
        for name in layers.into_iter().filter(|_| layers_unknown.is_none()) {
            cancel.check()?;
            let id = name.split('.').next().unwrap_or_default();
            // What is not called as we call our files is not ours to remove.
            let known = SnapshotId::is_valid(id) && !references.layers.contains_key(id);
            let path = self.ground.directories.layers.join(&name);
            if known && let Some(removed) = watch.unless_used(&layer_key(id), || sweep.file(&path)) {
                freed += removed?;
            }
        }
        if !references.unreadable_vms.is_empty() {
            // One of them may run over any memory.
            return Ok(freed);
        }
        let mut kept = Vec::new();
        for name in bases {
            cancel.check()?;
            let Some(id) = base_id(&name).and_then(|id| id.parse::<SnapshotId>().ok()) else { continue };
            let path = self.ground.directories.memory.join(&name);
            if references.bases.contains(&name) {
                continue;
            }
            if exists(&self.ground.snapshot_path(&id)) {
                if let Ok(metadata) = path.symlink_metadata() {
                    kept.push((metadata.mtime(), metadata.mtime_nsec(), metadata.blocks() * 512, name, path));
                }
            } else if let Some(removed) = watch.unless_used(&memory_key(&name), || sweep.file(&path)) {
                freed += removed?;
            }
        }
        // Newest first; beyond what may stay the others go. Those in use count, but stay.
        kept.sort();
        let mut total = 0u64;
        for (_, _, bytes, name, path) in kept.into_iter().rev() {
            total = total.saturating_add(bytes);
            if total > keep_memory_bytes
                && let Some(removed) = watch.unless_used(&memory_key(&name), || sweep.file(&path))
            {
                freed += removed?;
                total -= bytes;
            }
        }
        Ok(freed)
    }
}

impl Sweep {
    /// Bytes freed by removing a file; a second name of a VM's keeps them.
    fn file(self, path: &Utf8Path) -> Result<u64, StorageError> {
        let bytes = match path.symlink_metadata() {
            Ok(metadata) if metadata.nlink() == 1 => metadata.blocks() * 512,
            _ => 0,
        };
        if self == Self::Remove {
            remove_all(path)?;
        }
        Ok(bytes)
    }
}
