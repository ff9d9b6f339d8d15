//! Reads every byte of a snapshot.

use microvm_durable::cancel::Cancel;
use microvm_durable::files::exists;
use microvm_ports::snapshot::Damage;
use microvm_ports::{Progress, StorageError};
use microvm_types::SnapshotId;

use super::Catalog;
use super::manifest::{MEMORY, StatePart, damage};
use super::open_memory::MEMORY_STAMP;

impl Catalog {
    /// See [`microvm_ports::snapshot::SnapshotStore::verify_snapshot`].
    pub(crate) fn verify_snapshot(
        &self,
        id: &SnapshotId,
        cancel: &Cancel,
        progress: &Progress,
    ) -> Result<Vec<Damage>, StorageError> {
        let manifest = match self.records.read_snapshot(id)? {
            Ok((manifest, _)) => manifest,
            Err(damage) => return Ok(vec![damage]),
        };
        let directory = self.ground.snapshot_path(id);
        let state = |state: StatePart<'_>| {
            // Checksums of parts of a state are kept nowhere: there is no file of this name.
            (state.label(), directory.join(state.file_name()), directory.join("-"), state.part.clone())
        };
        let mut parts: Vec<_> = manifest.state().map(state).collect();
        parts.push((
            "memory".to_owned(),
            directory.join(MEMORY),
            directory.join(MEMORY_STAMP),
            manifest.memory.file.clone(),
        ));
        for (layer, path) in self.records.snapshot_layers(&manifest) {
            parts.push((
                format!("disk/{}", layer.id),
                path,
                self.ground.layer_sums(&layer.id),
                layer.file.clone(),
            ));
        }
        let mut found = Vec::new();
        let total: u64 = parts.iter().map(|(.., part)| part.length).sum();
        let mut done = 0;
        for (name, path, beside, part) in parts {
            progress.advance("verifying", done, Some(total));
            found.extend(part.find_damage_now(&name, &path, &beside, cancel)?);
            done += part.length;
        }
        progress.advance("verifying", done, Some(total));
        if let Some(parent) = &manifest.parent
            && !exists(&self.ground.snapshot_path(parent))
        {
            found.push(damage("parent", format!("snapshot {parent} is missing")));
        }
        let base = self.ground.directories.scratch_base.join(&manifest.disk.base);
        match self.scratch.verify_scratch_base(&base) {
            Ok(sha256) if sha256 == manifest.disk.base_sha256 => {}
            Ok(_) => {
                found.push(damage("disk/base", format!("{base} is another than the snapshot was taken over")))
            }
            Err(error) => found.push(damage("disk/base", error.to_string())),
        }
        // What is missing because it was removed meanwhile is no damage.
        if !exists(&directory) {
            return Err(StorageError::UnknownSnapshot(id.to_string()));
        }
        Ok(found)
    }
}
