//! Snapshots and fork points: saved machine states.
//!
//! ```text
//!  layers/<id>.qcow2       frozen disk layers, shared       memory/<id>.mem   materialised memory: a cache
//!  layers/<id>.json        their checksums, remembered      snapshots/<id>/   manifest.json, device.state, memory.pages
//! ```
//!
//! A snapshot appears by one rename after everything in it is synced, and vanishes by one. Layers and memory files are
//! named by the manifests of VMs and snapshots, or pinned while somebody works with them ([`Pins`]); what nobody names is
//! garbage. What this does *not* do: decide which snapshots to keep, or read a qcow2 file further than its tables' places.

mod absorb;
mod create_vm;
mod difference;
mod export;
mod export_format;
mod fork_point;
#[cfg(test)]
mod fuzz;
mod garbage;
mod handle;
mod import;
mod import_disk;
mod list;
mod locks;
mod manifest;
mod memory_base;
mod open_memory;
mod page_file;
mod part;
mod pins;
mod port;
mod references;
mod remove;
mod reset_vm;
mod source;
mod verify;
mod view;
mod write;
mod write_pages;

pub(crate) use locks::KeyedLocks;
pub(crate) use memory_base::forget_earlier_boot;
pub(crate) use pins::{Pin, Pins};

/// Name by which a layer is pinned.
pub(crate) fn layer_key(id: &str) -> String {
    format!("layer/{id}")
}

/// Name by which a memory base is pinned.
fn memory_key(name: &str) -> String {
    format!("memory/{name}")
}

/// Name by which a snapshot is pinned while another is written that builds on it.
fn snapshot_key(id: &microvm_types::SnapshotId) -> String {
    format!("snapshot/{id}")
}
