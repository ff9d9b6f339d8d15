//! The conformance suites: every driver of a port passes the suite of that port, the fake included.
//!
//! ```text
//!   a driver's test ──▶ harness ──▶ suite of the port ──▶ report of all checks
//! ```
//!
//! A driver's tests implement the harness trait of a suite (how to get an empty store, a machine description that
//! boots, a guest …) and call its `run`. A suite goes through all of its checks even when one fails and reports all
//! failures together, so that one run shows the whole state of a new driver. The port or the harness says what a driver
//! cannot offer; those checks are skipped with a line on standard error. What this crate does *not* do: know a driver, or
//! run in the product (it is a dependency of tests only).

pub mod fixtures;
pub mod guest;
pub mod hypervisor;
pub mod images;
pub mod snapshots;
pub mod state_store;
mod suite;
pub mod vms;

pub use suite::{Must, Suite};
