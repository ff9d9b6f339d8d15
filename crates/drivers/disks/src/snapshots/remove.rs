//! Removes a snapshot.

use std::sync::PoisonError;

use microvm_durable::error::failed;
use microvm_durable::files::{exists, names_in, remove_all, sync_directory};
use microvm_ports::StorageError;
use microvm_types::{SnapshotId, VmId};

use super::Catalog;
use super::memory_base::base_name;
use crate::ground::{memory_key, snapshot_key};

impl Catalog {
    /// Out of sight first, then away. Its layers and its materialised memory are left to the collector, except that the
    /// memory is removed now if it is unused: it is large.
    pub(crate) fn remove_snapshot(&self, id: &SnapshotId) -> Result<(), StorageError> {
        let path = self.ground.snapshot_path(id);
        if !exists(&path) {
            return Ok(());
        }
        // There is one watch of the pins at a time.
        let _alone = self.collecting.lock().unwrap_or_else(PoisonError::into_inner);
        let watch = self.ground.pins.watch();
        let references = self.references()?;
        references.require_known_users(id)?;
        let in_use = |users: String| StorageError::InUse { name: format!("the snapshot `{id}`"), users };
        if let Some(children) = references.parents.get(id) {
            let children: Vec<&str> = children.iter().map(SnapshotId::as_str).collect();
            return Err(in_use(format!("the snapshots {} that build on it", children.join(", "))));
        }
        let heir = self.records.snapshot_manifest(id).ok().and_then(|manifest| manifest.parent);
        let workspace = self.ground.workspace();
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
        sync_directory(&self.ground.directories.snapshots)?;
        self.hand_down(id, heir.as_ref());
        // A machine that is mapped over it keeps it; the collector takes it later.
        let name = base_name(id.as_str());
        if !references.bases.contains(&name) {
            let memory = self.ground.directories.memory.join(&name);
            if let Some(Err(error)) = watch.unless_used(&memory_key(&name), || remove_all(&memory)) {
                tracing::warn!(%error, "the collector removes it later");
            }
        }
        Ok(())
    }

    /// VMs whose next snapshot would build on `id` build on its parent instead: what differs is found by content. If that
    /// cannot be noted their next snapshot is whole in itself.
    fn hand_down(&self, id: &SnapshotId, heir: Option<&SnapshotId>) {
        let names = names_in(&self.ground.directories.vms).unwrap_or_default();
        for vm in names.iter().filter_map(|name| name.parse::<VmId>().ok()) {
            let lock = self.ground.disk_lock(&vm);
            let _alone = lock.hold();
            if let Ok(mut disk) = self.vms.read_disk(&vm)
                && disk.memory_parent.as_ref() == Some(id)
            {
                disk.memory_parent = heir.cloned();
                if let Err(error) = self.vms.write_disk(&vm, &disk) {
                    tracing::warn!(%error, %vm, "the next snapshot of this VM is whole in itself");
                }
            }
        }
    }
}
