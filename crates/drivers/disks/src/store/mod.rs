//! The store: opens the directories and runs blocking work for the ports.

mod snapshot_port;
mod vm_port;
mod volume_port;

use std::sync::Arc;

use microvm_durable::cancel::{Cancel, blocking};
use microvm_durable::workspace::remove_leftovers;
use microvm_ports::{Clock, StorageError};

use crate::config::DisksConfig;
use crate::ground::{Directories, Ground};
use crate::snapshots::{Catalog, Children, Exchange, Memories, Records, Writer, forget_earlier_boot};
use crate::vms::scratch::ScratchBases;
use crate::vms::{Tops, VmDisks};
use crate::volumes::Volumes;

/// Disks of VMs and snapshots below one directory. Cheap to clone; several processes may use one directory.
#[derive(Clone)]
pub struct Disks(Arc<Inner>);

/// The parts of a store, one for what each holds.
struct Inner {
    ground: Arc<Ground>,
    scratch: ScratchBases,
    vms: VmDisks,
    tops: Tops,
    records: Records,
    memories: Memories,
    catalog: Catalog,
    writer: Writer,
    exchange: Exchange,
    children: Children,
    volumes: Volumes,
}

impl Disks {
    /// Opens a store, makes what is missing, and removes what dead processes left. Blocks for some milliseconds.
    ///
    /// # Errors
    /// [`StorageError::Io`] or [`StorageError::DiskFull`] if the directory cannot be used.
    pub fn open(config: DisksConfig, clock: Arc<dyn Clock>) -> Result<Self, StorageError> {
        let directories = Directories::create(&config.root)?;
        remove_leftovers(&directories.work)?;
        forget_earlier_boot(&directories.memory)?;
        let ground = Arc::new(Ground::new(directories, config.disk_limit, clock));
        Ok(Self(Arc::new(Inner::new(ground, config.import_most))))
    }

    /// Runs blocking work on the store. If the future is dropped the work is told to stop and cleans up after itself.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Inner, Cancel) -> Result<T, StorageError> + Send + 'static,
    ) -> Result<T, StorageError> {
        let inner = Arc::clone(&self.0);
        blocking(self.0.ground.directories.root(), move |cancel| work(&inner, cancel)).await
    }
}

impl Inner {
    fn new(ground: Arc<Ground>, import_most: u64) -> Self {
        let scratch = ScratchBases::new(Arc::clone(&ground));
        let vms = VmDisks { ground: Arc::clone(&ground) };
        let tops = Tops { ground: Arc::clone(&ground), vms: vms.clone() };
        let records = Records { ground: Arc::clone(&ground) };
        let memories = Memories { ground: Arc::clone(&ground), records: records.clone() };
        let catalog = Catalog {
            ground: Arc::clone(&ground),
            scratch: scratch.clone(),
            vms: vms.clone(),
            records: records.clone(),
            collecting: Arc::default(),
        };
        let writer = Writer {
            ground: Arc::clone(&ground),
            scratch: scratch.clone(),
            vms: vms.clone(),
            tops: tops.clone(),
            records: records.clone(),
            memories: memories.clone(),
            catalog: catalog.clone(),
        };
        let exchange = Exchange {
            ground: Arc::clone(&ground),
            scratch: scratch.clone(),
            records: records.clone(),
            memories: memories.clone(),
            catalog: catalog.clone(),
            import_most,
        };
        let children = Children {
            ground: Arc::clone(&ground),
            scratch: scratch.clone(),
            vms: vms.clone(),
            tops: tops.clone(),
            records: records.clone(),
            memories: memories.clone(),
        };
        let volumes = Volumes { ground: Arc::clone(&ground) };
        Self { ground, scratch, vms, tops, records, memories, catalog, writer, exchange, children, volumes }
    }
}

impl std::fmt::Debug for Disks {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let root = self.0.ground.directories.root();
        formatter.debug_struct("Disks").field("root", &root).finish_non_exhaustive()
    }
}
