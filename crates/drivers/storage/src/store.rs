//! The store itself: opens the directory and runs blocking work for the ports.

use std::sync::{Arc, Mutex};

use microvm_durable::cancel::{Cancel, blocking};
use microvm_durable::room::Room;
use microvm_durable::stamp::VerifiedFiles;
use microvm_durable::workspace::{Workspace, remove_leftovers};
use microvm_ports::{Clock, StorageError};
use microvm_types::SnapshotId;

use crate::config::StorageConfig;
use crate::erofs::TreeMemory;
use crate::kernels::InitramfsCache;
use crate::layout::Directories;
use crate::snapshots::{KeyedLocks, Pins, forget_earlier_boot};

/// Images, kernels and VM files below one directory. Cheap to clone; several processes may use one directory.
#[derive(Clone)]
pub struct Storage(pub(crate) Arc<Inner>);

pub(crate) struct Inner {
    pub(crate) config: StorageConfig,
    pub(crate) directories: Directories,
    pub(crate) room: Room,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) verified: VerifiedFiles,
    pub(crate) initramfs: Mutex<InitramfsCache>,
    /// Empty scratch disks verified so far.
    pub(crate) scratch_bases:
        Mutex<std::collections::HashMap<camino::Utf8PathBuf, microvm_durable::stamp::Stamp>>,
    /// Files that are in use without being named in a manifest.
    pub(crate) pins: Pins,
    /// Whoever changes one VM's disk or makes one memory file does so alone.
    pub(crate) locks: KeyedLocks,
    /// Held while garbage is collected.
    pub(crate) collecting: Mutex<()>,
    /// Makes ids of one moment differ.
    pub(crate) made: std::sync::atomic::AtomicU64,
    /// Held for the moment in which names and images are changed, never while work is done.
    pub(crate) publishing: Mutex<()>,
    /// For the trees of all images that are being made.
    pub(crate) tree_memory: TreeMemory,
}

impl Storage {
    /// Opens a store, makes what is missing, and removes what dead processes left. Blocks for some milliseconds.
    ///
    /// # Errors
    /// [`StorageError::Io`] or [`StorageError::DiskFull`] if the directory cannot be used.
    pub fn open(config: StorageConfig, clock: Arc<dyn Clock>) -> Result<Self, StorageError> {
        let directories = Directories::create(&config.root)?;
        remove_leftovers(&directories.work)?;
        forget_earlier_boot(&directories.memory)?;
        let tree_memory = TreeMemory::of(config.limits.memory);
        let Directories { vms, memory, snapshots, layers, .. } = &directories;
        let room = Room::new([vms, memory, snapshots, layers].map(Clone::clone).into(), config.disk_limit);
        Ok(Self(Arc::new(Inner {
            config,
            room,
            directories,
            clock,
            verified: VerifiedFiles::default(),
            initramfs: Mutex::default(),
            scratch_bases: Mutex::default(),
            pins: Pins::default(),
            locks: KeyedLocks::default(),
            collecting: Mutex::default(),
            made: std::sync::atomic::AtomicU64::default(),
            publishing: Mutex::default(),
            tree_memory,
        })))
    }

    /// Runs blocking work on the store. If the future is dropped the work is told to stop and cleans up after itself.
    pub(crate) async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Inner, Cancel) -> Result<T, StorageError> + Send + 'static,
    ) -> Result<T, StorageError> {
        let inner = Arc::clone(&self.0);
        blocking(&self.0.config.root, move |cancel| work(&inner, cancel)).await
    }
}

impl Inner {
    /// A directory for work in progress.
    pub(crate) fn workspace(&self) -> Result<Workspace, StorageError> {
        Workspace::create(&self.directories.work)
    }

    /// A new id for which `taken` is false.
    pub(crate) fn fresh_id(&self, taken: impl Fn(&str) -> bool) -> String {
        let mut random = [0; 8];
        self.clock.fill_random(&mut random);
        loop {
            let number = self.made.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            let now = u64::try_from(self.clock.now_ms()).unwrap_or(0);
            // Any kind of id will do: what is wanted is its form.
            let id = SnapshotId::from_parts(now, u64::from_le_bytes(random).wrapping_add(number));
            if !taken(id.as_str()) {
                return id.into();
            }
        }
    }
}

impl std::fmt::Debug for Storage {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Storage").field("root", &self.0.config.root).finish_non_exhaustive()
    }
}
