//! The files of VMs: scratch disks, memory files, and the user's own disks.

pub(crate) mod disks;
pub(crate) mod files;
pub(crate) mod folders;
#[cfg(test)]
mod fuzz;
pub(crate) mod manifest;
pub(crate) mod own_disk;
pub(crate) mod qcow2;
mod qcow2_map;
pub(crate) mod qcow2_overlay;
pub(crate) mod record;
pub(crate) mod scratch;
pub(crate) mod tops;
mod write_back;

use std::sync::Arc;

use crate::ground::Ground;

/// Directories of VMs with the manifests of their disks.
#[derive(Clone)]
pub(crate) struct VmDisks {
    pub(crate) ground: Arc<Ground>,
}

/// Tops of disks: made, frozen to layers, and written back to the user's files.
#[derive(Clone)]
pub(crate) struct Tops {
    pub(crate) ground: Arc<Ground>,
    pub(crate) vms: VmDisks,
}
