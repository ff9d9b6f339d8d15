//! All snapshots.

use microvm_durable::files::disk_usage;
use microvm_durable::workspace::remove_leftovers;
use microvm_ports::StorageError;
use microvm_ports::snapshot::{Damage, SnapshotInfo};
use microvm_types::SnapshotId;

use super::Catalog;
use super::manifest::SnapshotManifest;
use super::references::References;

impl Catalog {
    /// Oldest first.
    #[allow(clippy::type_complexity, reason = "it is what the port returns")]
    pub(crate) fn list_snapshots(
        &self,
    ) -> Result<Vec<Result<SnapshotInfo, (SnapshotId, Damage)>>, StorageError> {
        remove_leftovers(&self.ground.directories.work)?;
        let references = self.references()?;
        let mut all = Vec::new();
        for id in self.records.snapshot_ids()? {
            match self.records.read_snapshot(&id) {
                Ok(Ok((manifest, sha256))) => {
                    self.records.note_uses(&manifest);
                    all.push(Ok(self.info(manifest, sha256, &references)));
                }
                Ok(Err(damage)) => all.push(Err((id, damage))),
                // Removed meanwhile.
                Err(StorageError::UnknownSnapshot(_)) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(all)
    }

    /// Description of one snapshot.
    pub(crate) fn snapshot_info(
        &self,
        manifest: SnapshotManifest,
        sha256: String,
    ) -> Result<SnapshotInfo, StorageError> {
        Ok(self.info(manifest, sha256, &self.references()?))
    }

    /// Description of one snapshot where `references` were looked up, with or without it.
    pub(crate) fn info(
        &self,
        manifest: SnapshotManifest,
        sha256: String,
        references: &References,
    ) -> SnapshotInfo {
        let own_layers = self
            .records
            .snapshot_layers(&manifest)
            .filter(|(layer, _)| references.layers.get(&layer.id).is_none_or(|users| *users <= 1));
        // What vanishes meanwhile takes nothing.
        let usage = |path: &camino::Utf8Path| disk_usage(path).unwrap_or(0);
        let own_bytes = usage(&self.ground.snapshot_path(&manifest.id))
            + own_layers.map(|(_, path)| usage(&path)).sum::<u64>();
        SnapshotInfo {
            id: manifest.id,
            parent: manifest.parent,
            description: manifest.description,
            memory_bytes: manifest.memory.content_bytes,
            own_bytes,
            sha256,
        }
    }
}
