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
    /// Manifests that could not be read: what they name is not known.
    pub(crate) unreadable: Vec<String>,
    /// Snapshots among them: what they build on is not known.
    pub(crate) unreadable_snapshots: Vec<SnapshotId>,
}

impl References {
    /// Fails if a snapshot other than `id` cannot be read: it may build on `id`.
    ///
    /// # Errors
    /// [`StorageError::InUse`] with the snapshots that cannot be read.
    pub(crate) fn require_readable_but(&self, id: &SnapshotId) -> Result<(), StorageError> {
        let others: Vec<&str> =
            self.unreadable_snapshots.iter().filter(|other| *other != id).map(SnapshotId::as_str).collect();
        if others.is_empty() {
            return Ok(());
        }
        let users = format!(
            "perhaps {}, whose manifest cannot be read: repair it from a copy, or remove it first",
            others.join(", ")
        );
        Err(StorageError::InUse { name: format!("snapshot {id}"), users })
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
                Err(_) if self.vms.is_reserved(&id) => {}
                Err(error) if exists(&self.ground.vm_path(&id)) => found.unreadable.push(error.to_string()),
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
                Ok(Err(damage)) => {
                    found.unreadable.push(format!("snapshot {id}: {}", damage.detail));
                    found.unreadable_snapshots.push(id);
                }
                // Removed meanwhile.
                Err(StorageError::UnknownSnapshot(_)) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(found)
    }
}
