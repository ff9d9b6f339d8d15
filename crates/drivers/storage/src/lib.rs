//! Images, kernels and the files of VMs on one host: the storage driver.
//!
//! ```text
//!  Debian packages ┐                                                    ┌ images/<digest>/root.erofs
//!  registry, OCI   ├─▶ source ─▶ erofs (tree, spool, one-pass writer) ─▶┤
//!  tar, folder     ┘                                                    └ names, manifests, stamps
//!  kernel package or source ─▶ kernels ─▶ vmlinux + initial file system with the agent
//!  sizes ─▶ vms ─▶ scratch overlay (qcow2) over a shared, empty ext4; all-zero memory files
//!  branches ─▶ snapshots ─▶ frozen disk layers, packed pages, materialised memory; durable snapshots; export files
//! ```
//!
//! Everything is made in `tmp/`, synced and renamed, so a thing is there whole or not at all; everything carries a
//! length and a SHA-256 and is verified when it is used. What it does *not* do: run machines, decide who may use what, or
//! keep state in memory that a restart would miss.

mod config;
mod erofs;
mod images;
mod kernels;
mod known_root;
mod layout;
mod snapshots;
mod source;
mod store;
mod vms;

pub use config::{AgentSource, ArchiveLimits, StorageConfig};
pub use kernels::KERNEL_FRAGMENT;
pub use known_root::has_own_images;
pub use store::Storage;
pub use vms::qcow2::{Qcow2Error, Qcow2Header};
