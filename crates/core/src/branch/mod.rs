//! Branches of a running VM: forks, snapshots, and what goes on from them.
//!
//! ```text
//!  running VM ──Fork──▶ ForkPoint ──────────────┐
//!      │                                        ├─▶ children: records, actors, machines side by side
//!      └──Snapshot──▶ store + index ──source────┘
//! ```

mod children;
mod fork;
mod names;
mod proof;
mod restore;
mod snapshot;

pub use fork::{ForkRequest, Forked};
pub use restore::RestoreRequest;
pub use snapshot::{BegunSnapshot, SnapshotRequest};

pub(crate) use children::check_name_free;
pub(crate) use proof::{probe, prove};

use crate::context::Context;

/// Forks, snapshots being taken, and what is made of them.
#[derive(Debug, Clone)]
pub struct Branches {
    context: Context,
}

impl Branches {
    pub(crate) fn new(context: &Context) -> Self {
        Self { context: context.clone() }
    }
}
