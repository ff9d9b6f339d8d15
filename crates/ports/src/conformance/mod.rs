//! The suites that every driver of a port must pass, the fake included.
//!
//! A driver's tests implement the harness trait of a suite (how to get an empty store, a machine description that
//! boots, a guest …) and call its `run`. A suite goes through all of its checks even when one fails and reports all
//! failures together, so that one run shows the whole state of a new driver. What a suite does *not* do: know a
//! driver. What a driver cannot offer is told by its port or its harness, and the checks of it are skipped with a line on
//! standard error.

pub mod guest;
mod guest_archives;
mod guest_files;
mod guest_processes;
pub mod hypervisor;
mod hypervisor_branches;
mod hypervisor_shares;
mod hypervisor_states;
mod hypervisor_waiting;
mod snapshot_bench;
mod snapshot_exports;
mod snapshot_lives;
pub mod snapshots;
pub mod state_store;
pub mod storage;
mod suite;

pub use suite::{Must, Suite};
