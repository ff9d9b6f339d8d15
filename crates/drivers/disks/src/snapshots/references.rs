//! References from manifests to layers, memory files and snapshots.

use std::collections::{HashMap, HashSet};

use microvm_durable::files::{exists, names_in};
use microvm_ports::StorageError;
use microvm_types::{SnapshotId, VmId};

use super::Catalog;

/// References of all manifests.
#[derive(Default)]
pub(crate) struct References {
    /// Layers, with how many name each.
    pub(crate) layers: HashMap<String, usize>,
    /// File names of memory bases that machines may be mapped over.
    pub(crate) bases: HashSet<String>,
    /// Snapshots that others build on, with those others.
    pub(crate) parents: HashMap<SnapshotId, Vec<SnapshotId>>,
    /// Manifests of VMs that could not be read: the layers and memory that these name are not known.
    pub(crate) unreadable_vms: Vec<String>,
    /// Snapshots of which it cannot be told what they build on.
    pub(crate) unknown: Vec<SnapshotId>,
}

impl References {
    /// Fails if a snapshot may build on `id` of which it cannot be told what it builds on. An older one cannot: ids sort by
    /// time, and a snapshot builds on what was there before it.
    ///
    /// # Errors
    /// [`StorageError::InUse`] with the snapshots that cannot be read.
    pub(crate) fn require_known_users(&self, id: &SnapshotId) -> Result<(), StorageError> {
        let later: Vec<&str> =
            self.unknown.iter().filter(|other| *other > id).map(SnapshotId::as_str).collect();
        if later.is_empty() {
            return Ok(());
        }
        let users = format!(
            "perhaps {}, whose manifest cannot be read: repair it from a copy, or remove it first",
            later.join(", ")
        );
        Err(StorageError::InUse { name: format!("the snapshot `{id}`"), users })
    }

    /// Layers may be named by what cannot be read: all of these, in words.
    pub(crate) fn layers_unknown(&self) -> Option<String> {
        let snapshots = self.unknown.iter().map(|id| format!("snapshot {id}"));
        let all: Vec<String> = self.unreadable_vms.iter().cloned().chain(snapshots).collect();
        (!all.is_empty()).then(|| all.join("; "))
    }
}

impl Catalog {
    /// Reads all manifests.
    pub(crate) fn references(&self) -> Result<References, StorageError> {
        let mut found = References::default();
        for id in names_in(&self.ground.directories.vms)?.iter().filter_map(|name| name.parse::<VmId>().ok())
        {
            match self.vms.read_disk(&id) {
                Ok(disk) => {
                    for layer in disk.all_layers() {
                        *found.layers.entry(layer.clone()).or_default() += 1;
                    }
                    found.bases.extend(disk.memory_base);
                }
                // A VM that is not made yet names nothing.
                Err(_) if self.vms.is_reserved(&id) => {}
                Err(error) if exists(&self.ground.vm_path(&id)) => {
                    found.unreadable_vms.push(error.to_string())
                }
                Err(_) => {}
            }
        }
        for id in self.records.snapshot_ids()? {
            match self.records.read_snapshot(&id) {
                Ok(Ok((manifest, _))) => {
                    for (layer, _) in self.records.snapshot_layers(&manifest) {
                        *found.layers.entry(layer.id.clone()).or_default() += 1;
                    }
                    if let Some(parent) = manifest.parent {
                        found.parents.entry(parent).or_default().push(id);
                    }
                }
                // Its manifest is damaged; what it builds on is noted once more beside it.
                Ok(Err(_)) => match self.records.uses(&id) {
                    Some(uses) => {
                        for layer in uses.layers {
                            *found.layers.entry(layer).or_default() += 1;
                        }
                        if let Some(parent) = uses.parent {
                            found.parents.entry(parent).or_default().push(id);
                        }
                    }
                    None => found.unknown.push(id),
                },
                // Removed meanwhile.
                Err(StorageError::UnknownSnapshot(_)) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(found)
    }
}
