//! Snapshots, forks and what is made of them.
//!
//! ```text
//!  running VM ──Fork──▶ ForkPoint ──────────────┐
//!      │                                        ├─▶ children: records, actors, machines side by side
//!      └──Snapshot──▶ store + index ──source────┘
//!                        ▲
//!  template ──Golden─────┘ booted once, then every new VM of it is a child
//! ```

mod children;
mod create;
mod fork;
mod golden;
mod index;
mod janitor;
mod manage;
mod names;
mod old_goldens;
mod proof;
mod restore;
mod versions;
mod warm_up;

pub use create::{BegunSnapshot, SnapshotRequest};
pub use fork::{ForkRequest, Forked};
pub use index::Snapshot;
pub use manage::{SnapshotFilter, SnapshotStatistics};
pub use restore::RestoreRequest;
pub use versions::GoldenVersion;

pub(crate) use golden::{GOLDEN_LABEL, Goldens};
pub(crate) use index::SnapshotIndex;
pub(crate) use janitor::keep_clean;
pub(crate) use old_goldens::keep_goldens_young;
