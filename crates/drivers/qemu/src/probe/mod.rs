//! Abilities of this host and its QEMU, and needs of saved states.

pub(crate) mod accelerator;
pub(crate) mod compatibility;
pub(crate) mod hardware;
mod host;
mod timestamp_counter;

pub use host::NAME;
pub(crate) use host::{ABILITIES, Host, probe, standby_is_safe};
