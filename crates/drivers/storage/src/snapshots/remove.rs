//! Removes a snapshot.

use std::sync::PoisonError;

use microvm_ports::StorageError;
use microvm_types::SnapshotId;

use super::memory_base::base_name;
use super::{memory_key, snapshot_key};
use crate::base::error::failed;
use crate::base::files::{exists, remove_all, sync_directory};
use crate::store::Inner;

impl Inner {
    /// Out of sight first, then away. Its layers and its materialised memory are left to the collector, except that the
    /// memory goes now if nobody uses it: it is large.
    pub(crate) fn remove_snapshot(&self, id: &SnapshotId) -> Result<(), StorageError> {
        let path = self.snapshot_path(id);
        if !exists(&path) {
            return Ok(());
        }
        let _alone = self.collecting.lock().unwrap_or_else(PoisonError::into_inner);
        let watch = self.pins.watch();
        let references = self.references()?;
        let in_use = |users: String| StorageError::InUse { name: format!("snapshot {id}"), users };
        if let Some(children) = references.parents.get(id) {
            let children: Vec<&str> = children.iter().map(SnapshotId::as_str).collect();
            return Err(in_use(format!("the snapshots {} that build on it", children.join(", "))));
        }
        let workspace = self.workspace();
        let removed = watch.unless_used(&snapshot_key(id), || match &workspace {
            Ok(workspace) => std::fs::rename(&path, workspace.join("snapshot"))
                .map_err(|error| failed("removing", &path, error)),
            // A full disk: it is removed where it is. Its manifest goes first, so that it is never seen half.
            Err(_) => remove_all(&path.join(super::manifest::MANIFEST)).and_then(|()| remove_all(&path)),
        });
        match removed {
            None => return Err(in_use("a snapshot that is being written".to_owned())),
            Some(Err(_)) if !exists(&path) => {}
            Some(other) => other?,
        }
        sync_directory(&self.directories.snapshots)?;
        let name = base_name(id.as_str());
        if !references.bases.contains(&name) {
            let memory = self.directories.memory.join(&name);
            if let Some(Err(error)) = watch.unless_used(&memory_key(&name), || remove_all(&memory)) {
                tracing::warn!(%error, "the collector removes it later");
            }
        }
        Ok(())
    }
}
