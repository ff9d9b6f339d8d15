//! `uses.json` of a snapshot: what it builds on, once more. A manifest that cannot be read any more blocks nothing else then.

use camino::Utf8Path;
use microvm_durable::files::remove_all;
use microvm_durable::manifest;
use microvm_ports::StorageError;
use microvm_types::SnapshotId;
use serde::{Deserialize, Serialize};

use super::Records;
use super::manifest::{SnapshotManifest, write_manifest};

/// Holds what a snapshot builds on.
pub(crate) const USES: &str = "uses.json";

/// Everything outside of its directory that a snapshot needs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Uses {
    pub(crate) id: SnapshotId,
    pub(crate) parent: Option<SnapshotId>,
    /// Ids of layers.
    pub(crate) layers: Vec<String>,
}

impl Uses {
    /// Uses that a manifest names.
    pub(crate) fn of(snapshot: &SnapshotManifest) -> Self {
        let own = snapshot.own_disks.iter();
        let layers = snapshot.disk.layers.iter().chain(own.clone().flat_map(|disk| &disk.layers));
        let layers = layers.chain(own.map(|disk| &disk.base)).map(|layer| layer.id.clone());
        Self { id: snapshot.id.clone(), parent: snapshot.parent.clone(), layers: layers.collect() }
    }
}

/// Writes a manifest, and beside it what the snapshot builds on, to new files and syncs them; returns the SHA-256 of the
/// manifest.
pub(crate) fn write_described(path: &Utf8Path, snapshot: &SnapshotManifest) -> Result<String, StorageError> {
    manifest::write(&path.with_file_name(USES), &Uses::of(snapshot))?;
    write_manifest(path, snapshot)
}

impl Records {
    /// Reads what a snapshot builds on without its manifest.
    pub(crate) fn uses(&self, id: &SnapshotId) -> Option<Uses> {
        let uses: Uses =
            manifest::read(&self.ground.snapshot_path(id).join(USES), "what a snapshot uses").ok()?;
        (uses.id == *id).then_some(uses)
    }

    /// Notes what a snapshot builds on if that was not noted, or noted otherwise: earlier versions did not, and a manifest that
    /// was put back from a copy may name other layers.
    pub(crate) fn note_uses(&self, snapshot: &SnapshotManifest) {
        let path = self.ground.snapshot_path(&snapshot.id).join(USES);
        let uses = Uses::of(snapshot);
        if self.uses(&snapshot.id).as_ref() == Some(&uses) {
            return;
        }
        let noted: Result<(), StorageError> = remove_all(&path).and_then(|()| manifest::write(&path, &uses));
        if let Err(error) = noted {
            tracing::debug!(snapshot = %snapshot.id, %error, "what it builds on is noted in its manifest only");
        }
    }
}
