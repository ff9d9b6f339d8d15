//! Abilities of this host and its QEMU, and needs of saved states.

pub(crate) mod accelerator;
pub(crate) mod compatibility;
pub(crate) mod hardware;
mod host;
mod timestamp_counter;

pub(crate) use host::{ABILITIES, Host, NAME, probe, standby_is_safe};
