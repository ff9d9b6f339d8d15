//! Ground of disks and snapshots: directories, room, ids, pins and locks.

mod directories;
mod locks;
mod pins;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use camino::Utf8PathBuf;
use microvm_durable::room::Room;
use microvm_durable::workspace::Workspace;
use microvm_ports::{Clock, StorageError};
use microvm_types::{SnapshotId, VmId};

pub(crate) use self::directories::Directories;
use self::locks::{KeyedLock, KeyedLocks};
pub(crate) use self::pins::{Pin, Pins};

/// The ground of one store; its parts share it.
pub(crate) struct Ground {
    pub(crate) directories: Directories,
    pub(crate) room: Room,
    clock: Arc<dyn Clock>,
    /// Makes ids of one moment differ.
    made: AtomicU64,
    /// Files that are in use without being named in a manifest.
    pub(crate) pins: Pins,
    locks: KeyedLocks,
}

impl Ground {
    /// The ground in `directories`.
    pub(crate) fn new(directories: Directories, disk_limit: Option<u64>, clock: Arc<dyn Clock>) -> Self {
        let Directories { vms, memory, snapshots, layers, volumes, .. } = &directories;
        let room = Room::new([vms, memory, snapshots, layers, volumes].map(Clone::clone).into(), disk_limit);
        Self {
            directories,
            room,
            clock,
            made: AtomicU64::default(),
            pins: Pins::default(),
            locks: KeyedLocks::default(),
        }
    }

    /// The lock of one VM's disk: its manifest is changed under it.
    pub(crate) fn disk_lock(&self, vm: &VmId) -> KeyedLock {
        self.locks.of(&format!("disk/{vm}"))
    }

    /// The lock under which one memory file is made.
    pub(crate) fn memory_lock(&self, name: &str) -> KeyedLock {
        self.locks.of(&memory_key(name))
    }

    /// A number that no other file of this process has.
    pub(crate) fn number(&self) -> u64 {
        self.made.fetch_add(1, Ordering::Relaxed)
    }

    /// A directory for work in progress.
    pub(crate) fn workspace(&self) -> Result<Workspace, StorageError> {
        Workspace::create(&self.directories.work)
    }

    /// A new id for which `taken` is false.
    pub(crate) fn fresh_id(&self, taken: impl Fn(&str) -> bool) -> String {
        let mut random = [0; 8];
        self.clock.fill_random(&mut random);
        loop {
            let number = self.number();
            let now = u64::try_from(self.clock.now_ms()).unwrap_or(0);
            // Any kind of id will do: what is wanted is its form.
            let id = SnapshotId::from_parts(now, u64::from_le_bytes(random).wrapping_add(number));
            if !taken(id.as_str()) {
                return id.into();
            }
        }
    }

    /// The directory of a VM.
    pub(crate) fn vm_path(&self, id: &VmId) -> Utf8PathBuf {
        self.directories.vms.join(id.as_str())
    }

    /// The file of a layer.
    pub(crate) fn layer_path(&self, id: &str) -> Utf8PathBuf {
        self.directories.layers.join(format!("{id}.qcow2"))
    }

    /// The file of a raw layer, below all others of a disk.
    pub(crate) fn raw_layer_path(&self, id: &str) -> Utf8PathBuf {
        self.directories.layers.join(format!("{id}.raw"))
    }

    /// Path of the remembered checksums of a layer.
    pub(crate) fn layer_sums(&self, id: &str) -> Utf8PathBuf {
        self.directories.layers.join(format!("{id}.json"))
    }

    /// The directory of a snapshot.
    pub(crate) fn snapshot_path(&self, id: &SnapshotId) -> Utf8PathBuf {
        self.directories.snapshots.join(id.as_str())
    }
}

/// Name by which a layer is pinned.
pub(crate) fn layer_key(id: &str) -> String {
    format!("layer/{id}")
}

/// Name by which a memory base is pinned.
pub(crate) fn memory_key(name: &str) -> String {
    format!("memory/{name}")
}

/// Name by which a snapshot is pinned while another is written that builds on it.
pub(crate) fn snapshot_key(id: &SnapshotId) -> String {
    format!("snapshot/{id}")
}
