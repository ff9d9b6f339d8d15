//! Disks of VMs and saved states on one host.
//!
//! ```text
//!  sizes ─▶ vms ─▶ scratch overlay (qcow2) over a shared, empty ext4; all-zero memory files
//!  branches ─▶ snapshots ─▶ frozen disk layers, packed pages, materialised memory; durable snapshots; export files
//!
//!  modules:  store ─▶ volumes, snapshots ─▶ vms ─▶ ground (directories, room, ids, pins, locks)
//! ```
//!
//! Everything is made in `tmp/`, synced and renamed, so a thing is there whole or not at all; what is kept carries a
//! length and a SHA-256 and is verified when it is used. What this crate does *not* do: hold images or kernels
//! (`drivers/images`), run machines, or keep state in memory that a restart would miss.

mod config;
mod ground;
mod snapshots;
mod store;
mod vms;
mod volumes;

pub use config::DisksConfig;
pub use store::Disks;
pub use vms::qcow2::{Qcow2Error, Qcow2Header};
