//! The files of VMs: scratch disks, memory files, and the user's own disks.

mod disks;
mod files;
pub(crate) mod qcow2;
mod qcow2_overlay;
mod scratch;
