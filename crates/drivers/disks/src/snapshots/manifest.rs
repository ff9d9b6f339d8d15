//! `manifest.json` of a snapshot.

use std::collections::BTreeMap;

use camino::Utf8PathBuf;
use microvm_durable::error::{bad_input, io_error};
use microvm_durable::files::{exists, names_in, sha256, write_new};
use microvm_durable::manifest;
use microvm_ports::StorageError;
use microvm_ports::snapshot::{Damage, StateDescription};
use microvm_ports::state_parts::{PartName, StateParts};
use microvm_types::SnapshotId;
use serde::{Deserialize, Serialize};

use super::Records;
use super::older;
use super::page_file::PAGE;
use super::part::Part;

pub(crate) const MANIFEST: &str = "manifest.json";
pub(crate) const DEVICE_STATE: &str = "device.state";
pub(crate) const MEMORY: &str = "memory.pages";
/// The longest record of core's and the longest chain of layers leave room in a manifest, which may have 1 MiB.
const RECORD_MAX: usize = 256 << 10;
/// Layers of one disk; each costs a VMM an open file, and the manifest up to 5 KiB.
pub(crate) const LAYERS_MAX: usize = 128;

/// Everything that is known of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SnapshotManifest {
    pub(crate) id: SnapshotId,
    pub(crate) parent: Option<SnapshotId>,
    #[serde(serialize_with = "older::with_discovery")]
    pub(crate) description: StateDescription,
    /// The part of the state named [`StateParts::DEVICE_STATE`], in the file that it has had since the first version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) device_state: Option<Part>,
    /// The other parts of the state, each in a file `state.<name>`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) state_parts: BTreeMap<PartName, Part>,
    pub(crate) memory: MemoryPart,
    pub(crate) disk: DiskPart,
    /// Disks that were the user's.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) own_disks: Vec<OwnDiskPart>,
}

/// The packed pages.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct MemoryPart {
    pub(crate) file: Part,
    /// Bytes of content in it.
    pub(crate) content_bytes: u64,
    /// Number of parents above this snapshot.
    pub(crate) depth: u32,
}

/// The disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct DiskPart {
    pub(crate) disk_mib: u32,
    /// File name of the empty disk below all.
    pub(crate) base: String,
    /// SHA-256 over the data of that disk.
    pub(crate) base_sha256: String,
    /// Newest first.
    pub(crate) layers: Vec<LayerPart>,
}

/// A disk that was the user's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct OwnDiskPart {
    pub(crate) serial: String,
    pub(crate) bytes: u64,
    /// The raw layer below all.
    pub(crate) base: LayerPart,
    /// Newest first.
    pub(crate) layers: Vec<LayerPart>,
    /// The file it belongs to in the VM that the snapshot was taken of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) home: Option<Utf8PathBuf>,
}

/// One frozen layer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LayerPart {
    pub(crate) id: String,
    pub(crate) file: Part,
}

/// One part of a state: where it is, and what it must be.
pub(crate) struct StatePart<'a> {
    pub(crate) name: &'a str,
    pub(crate) part: &'a Part,
}

impl StatePart<'_> {
    fn is_device_state(&self) -> bool {
        self.name == StateParts::DEVICE_STATE
    }

    /// File name in the directory of the snapshot.
    pub(crate) fn file_name(&self) -> String {
        if self.is_device_state() { DEVICE_STATE.to_owned() } else { format!("state.{}", self.name) }
    }

    /// Name of the part in reports of damage and in exports.
    pub(crate) fn label(&self) -> String {
        if self.is_device_state() { self.name.to_owned() } else { format!("state/{}", self.name) }
    }
}

impl SnapshotManifest {
    /// Parts of the state in the order in which they are exported.
    pub(crate) fn state(&self) -> impl Iterator<Item = StatePart<'_>> {
        let first = self.device_state.iter().map(|part| StatePart { name: StateParts::DEVICE_STATE, part });
        first.chain(self.state_parts.iter().map(|(name, part)| StatePart { name: name.as_str(), part }))
    }

    /// All parts, for changes: those of the state as [`SnapshotManifest::state`] has them, the memory, and the layers as
    /// [`Records::snapshot_layers`] has them.
    pub(crate) fn parts_mut(&mut self) -> impl Iterator<Item = &mut Part> {
        let state = self.device_state.iter_mut().chain(self.state_parts.values_mut());
        let layers = self.disk.layers.iter_mut().map(|layer| &mut layer.file);
        let (bases, own): (Vec<_>, Vec<_>) =
            self.own_disks.iter_mut().map(|disk| (&mut disk.base.file, &mut disk.layers)).unzip();
        let own = own.into_iter().flatten().map(|layer| &mut layer.file);
        state.chain([&mut self.memory.file]).chain(layers).chain(own).chain(bases)
    }

    /// Bytes of all parts of the state; `None` for more than can be counted.
    pub(crate) fn state_bytes(&self) -> Option<u64> {
        self.state().try_fold(0u64, |sum, state| sum.checked_add(state.part.length))
    }

    /// Pages of memory.
    pub(crate) fn pages(&self) -> u64 {
        (u64::from(self.description.memory_mib) << 20) / PAGE
    }
}

/// Refuses descriptions that would not fit.
pub(crate) fn check_description(description: &StateDescription) -> Result<(), StorageError> {
    let length = serde_json::to_vec(description).map_or(usize::MAX, |bytes| bytes.len());
    if length > RECORD_MAX {
        return Err(bad_input(
            "the snapshot",
            format!("its description has {length} bytes, {RECORD_MAX} are possible"),
        ));
    }
    Ok(())
}

/// A damage that is the whole of something.
pub(crate) fn damage(part: &str, detail: impl Into<String>) -> Damage {
    Damage { part: part.to_owned(), first_byte: 0, end_byte: 0, detail: detail.into() }
}

impl Records {
    /// All layers of a snapshot, with the file of each.
    pub(crate) fn snapshot_layers<'a>(
        &'a self,
        snapshot: &'a SnapshotManifest,
    ) -> impl Iterator<Item = (&'a LayerPart, Utf8PathBuf)> {
        let own = snapshot.own_disks.iter();
        let layers = snapshot.disk.layers.iter().chain(own.clone().flat_map(|disk| &disk.layers));
        layers
            .map(|layer| (layer, self.ground.layer_path(&layer.id)))
            .chain(own.map(|disk| (&disk.base, self.ground.raw_layer_path(&disk.base.id))))
    }

    /// Ids of all snapshots that are there, oldest first.
    pub(crate) fn snapshot_ids(&self) -> Result<Vec<SnapshotId>, StorageError> {
        Ok(names_in(&self.ground.directories.snapshots)?
            .iter()
            .filter_map(|name| name.parse().ok())
            .collect())
    }

    /// Reads a manifest, and the SHA-256 of its bytes; the inner error tells how it is damaged.
    #[allow(clippy::type_complexity, reason = "a missing snapshot and a damaged one are different answers")]
    pub(crate) fn read_snapshot(
        &self,
        id: &SnapshotId,
    ) -> Result<Result<(SnapshotManifest, String), Damage>, StorageError> {
        let directory = self.ground.snapshot_path(id);
        let path = directory.join(MANIFEST);
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                if !exists(&directory) {
                    return Err(StorageError::UnknownSnapshot(id.to_string()));
                }
                return Ok(Err(damage("manifest", "the file is missing")));
            }
            Err(error) => return Err(io_error("reading", &path)(error)),
        };
        let whole = |detail: String| Damage {
            part: "manifest".to_owned(),
            first_byte: 0,
            end_byte: bytes.len() as u64,
            detail,
        };
        Ok(match manifest::decode::<SnapshotManifest>(&bytes) {
            Err(detail) => Err(whole(detail)),
            Ok(manifest) if manifest.id != *id => {
                Err(whole(format!("it belongs to snapshot {}", manifest.id)))
            }
            Ok(manifest) if !(1..=StateParts::MOST).contains(&manifest.state().count()) => {
                let (count, most) = (manifest.state().count(), StateParts::MOST);
                Err(whole(format!("it tells of {count} parts of a state, 1 to {most} are possible")))
            }
            Ok(manifest) => Ok((manifest, sha256(&bytes))),
        })
    }

    /// Reads a manifest; damage is an error.
    pub(crate) fn snapshot_manifest(&self, id: &SnapshotId) -> Result<SnapshotManifest, StorageError> {
        match self.read_snapshot(id)? {
            Ok((manifest, _)) => Ok(manifest),
            Err(damage) => Err(damage.of(id)),
        }
    }
}

/// Writes a manifest to a new file and syncs it; returns the SHA-256 of its bytes.
pub(crate) fn write_manifest(
    path: &camino::Utf8Path,
    snapshot: &SnapshotManifest,
) -> Result<String, StorageError> {
    let bytes = manifest::encode(snapshot);
    // Readers take no more, so it could never be read again.
    if bytes.len() > 1 << 20 {
        return Err(bad_input("the snapshot", format!("its manifest would have {} bytes", bytes.len())));
    }
    write_new(path, 0o400, &bytes)?;
    Ok(sha256(&bytes))
}
