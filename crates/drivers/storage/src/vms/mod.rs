//! The files of VMs: scratch disks, memory files, and the user's own disks.

mod disks;
pub(crate) mod files;
mod folders;
#[cfg(test)]
mod fuzz;
pub(crate) mod manifest;
pub(crate) mod own_disk;
pub(crate) mod qcow2;
mod qcow2_map;
pub(crate) mod qcow2_overlay;
pub(crate) mod scratch;
pub(crate) mod tops;
mod write_back;
