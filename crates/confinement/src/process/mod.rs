//! Processes on the host: their identity, the records of those that run for a VM, and those that no record tells of.

mod identity;
mod ownership;
pub(crate) mod record;
pub(crate) mod stray;

pub use identity::ProcessIdentity;
pub(crate) use identity::boot_id;
