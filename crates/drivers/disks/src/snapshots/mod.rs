//! Snapshots and fork points: saved machine states.
//!
//! ```text
//!  layers/<id>.qcow2       frozen disk layers, shared       memory/<id>.mem   materialised memory: a cache
//!  layers/<id>.json        their checksums, remembered      snapshots/<id>/   manifest.json, device.state, memory.pages
//! ```
//!
//! A snapshot appears by one rename after everything in it is synced, and vanishes by one. Layers and memory files are
//! named by the manifests of VMs and snapshots, or pinned while somebody works with them ([`Pins`](crate::ground::Pins)); what nobody names is
//! garbage. What this does *not* do: decide which snapshots to keep, or read a qcow2 file further than its tables' places.

mod absorb;
mod create_vm;
mod difference;
mod export;
mod export_format;
mod fork_point;
#[cfg(test)]
mod fuzz;
mod garbage;
mod handle;
mod holes;
mod import;
mod import_disk;
mod list;
mod manifest;
mod memory_base;
mod older;
mod open_memory;
mod page_file;
mod part;
mod references;
mod remove;
mod reset_vm;
mod source;
mod uses;
mod verify;
mod view;
mod write;
mod write_pages;

pub(crate) use garbage::Sweep;
pub(crate) use handle::SourceHandle;
pub(crate) use memory_base::forget_earlier_boot;

use std::sync::{Arc, Mutex};

use crate::ground::Ground;
use crate::vms::scratch::ScratchBases;
use crate::vms::{Tops, VmDisks};

/// Manifests of snapshots, and the parts that they name.
#[derive(Clone)]
pub(crate) struct Records {
    pub(crate) ground: Arc<Ground>,
}

/// Memories: zeros, materialised bases, and those of snapshots and branches.
#[derive(Clone)]
pub(crate) struct Memories {
    pub(crate) ground: Arc<Ground>,
    pub(crate) records: Records,
}

/// All snapshots, and what names which layers: lists, removes, verifies, and collects garbage.
#[derive(Clone)]
pub(crate) struct Catalog {
    pub(crate) ground: Arc<Ground>,
    pub(crate) scratch: ScratchBases,
    pub(crate) vms: VmDisks,
    pub(crate) records: Records,
    /// Held while garbage is collected.
    pub(crate) collecting: Arc<Mutex<()>>,
}

/// Writes snapshots.
pub(crate) struct Writer {
    pub(crate) ground: Arc<Ground>,
    pub(crate) scratch: ScratchBases,
    pub(crate) vms: VmDisks,
    pub(crate) tops: Tops,
    pub(crate) records: Records,
    pub(crate) memories: Memories,
    pub(crate) catalog: Catalog,
}

/// Exports snapshots to files, and imports them.
pub(crate) struct Exchange {
    pub(crate) ground: Arc<Ground>,
    pub(crate) scratch: ScratchBases,
    pub(crate) records: Records,
    pub(crate) memories: Memories,
    pub(crate) catalog: Catalog,
    /// Most bytes of an import, unpacked.
    pub(crate) import_most: u64,
}

/// Makes states ready for children, and the files of those.
pub(crate) struct Children {
    pub(crate) ground: Arc<Ground>,
    pub(crate) scratch: ScratchBases,
    pub(crate) vms: VmDisks,
    pub(crate) tops: Tops,
    pub(crate) records: Records,
    pub(crate) memories: Memories,
}
