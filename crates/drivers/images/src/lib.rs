//! Images and kernels on one host: what VMs boot from, immutable and verified.
//!
//! ```text
//!  Debian packages ┐                                                    ┌ images/<digest>/root.erofs
//!  registry, OCI   ├─▶ source ─▶ erofs (tree, spool, one-pass writer) ─▶┤
//!  tar, folder     ┘                                                    └ names, manifests, stamps
//!  kernel package or source ─▶ kernels ─▶ vmlinux + initial file system with the agent
//! ```
//!
//! Everything is made in `tmp/`, synced and renamed, so a thing is there whole or not at all; everything carries a
//! length and a SHA-256 and is verified when it is used. What this crate does *not* do: hold disks of VMs or snapshots
//! (`drivers/disks`), decide who may use what, or keep state in memory that a restart would miss.

mod config;
mod erofs;
mod export;
mod images;
mod kernels;
mod known_root;
mod source;
mod store;

pub use config::{AgentSource, ArchiveLimits, ImagesConfig};
pub use kernels::KERNEL_FRAGMENT;
pub use known_root::has_own_images;
pub use source::registry::login_server;
pub use store::Images;
