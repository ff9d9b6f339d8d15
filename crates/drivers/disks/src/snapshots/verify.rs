//! Reads every byte of a snapshot.

use microvm_durable::cancel::Cancel;
use microvm_durable::error::io_error;
use microvm_durable::files::{exists, sha256};
use microvm_durable::manifest::encode;
use microvm_ports::snapshot::{Damage, Verified};
use microvm_ports::{Progress, StorageError};
use microvm_types::SnapshotId;

use super::Catalog;
use super::manifest::{MANIFEST, MEMORY, StatePart, damage};
use super::open_memory::MEMORY_STAMP;

impl Catalog {
    /// See [`microvm_ports::snapshot::SnapshotStore::verify_snapshot`].
    pub(crate) fn verify_snapshot(
        &self,
        id: &SnapshotId,
        cancel: &Cancel,
        progress: &Progress,
    ) -> Result<Verified, StorageError> {
        let (manifest, stored) = match self.records.read_snapshot(id)? {
            Ok(read) => read,
            Err(damage) => return self.unreadable(id, damage),
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
        let (mut found, mut now) = (Vec::new(), manifest.clone());
        let total: u64 = parts.iter().map(|(.., part)| part.length).sum();
        let mut done = 0;
        for ((name, path, beside, part), now) in parts.into_iter().zip(now.parts_mut()) {
            progress.advance("verifying", done, Some(total));
            let (content, damage) = part.read_now(&name, &path, &beside, cancel)?;
            *now = content;
            found.extend(damage);
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
            Ok(sha256) => {
                now.disk.base_sha256 = sha256;
                found.push(damage("disk/base", format!("{base} is another than the snapshot was taken over")))
            }
            Err(error) => {
                // Its sum is not known: it is not the one that it was.
                now.disk.base_sha256 = String::new();
                found.push(damage("disk/base", error.to_string()));
            }
        }
        // What is missing because it was removed meanwhile is no damage.
        if !exists(&directory) {
            return Err(StorageError::UnknownSnapshot(id.to_string()));
        }
        // A manifest of an earlier version is not written now as it was then: what is whole has the sum of its bytes.
        let current_sha256 = if now == manifest { stored.clone() } else { sha256(&encode(&now)) };
        Ok(Verified { damage: found, stored_sha256: Some(stored), current_sha256 })
    }

    /// What can be said of a snapshot whose manifest cannot be read.
    fn unreadable(&self, id: &SnapshotId, damage: Damage) -> Result<Verified, StorageError> {
        let path = self.ground.snapshot_path(id).join(MANIFEST);
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(io_error("reading", &path)(error)),
        };
        Ok(Verified { damage: vec![damage], stored_sha256: None, current_sha256: sha256(&bytes) })
    }
}
