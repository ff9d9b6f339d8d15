//! Images, kernels, files of VMs, and saved states.

mod exported;
mod saved;
mod snapshots;
mod store;

pub use store::FakeStorage;
pub(crate) use store::{EMPTY_DISK, digest};
