//! Images, kernels, files of VMs, and saved states.

mod branching;
mod exported;
mod images;
mod kernels;
mod saved;
mod snapshots;
mod store;
mod vm_files;
mod volumes;

pub use store::FakeStorage;
pub(crate) use store::digest;
pub(crate) use vm_files::EMPTY_DISK;
