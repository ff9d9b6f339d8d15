//! State of the engine, in memory: snapshots, golden snapshots, pools, what VMs have reserved, and what could not be read. Data only.

mod goldens;
mod pools;
mod reservations;
mod snapshots;
mod unreadable;
mod volumes;

pub use snapshots::Snapshot;

pub(crate) use goldens::{GOLDEN_LABEL, GoldenTable, StartingPoint};
pub(crate) use pools::{Place, Pool, PoolTable, Waiting};
pub(crate) use reservations::{Demand, Reservation, Reservations};
pub(crate) use snapshots::SnapshotIndex;
pub(crate) use unreadable::UnreadableParts;
pub(crate) use volumes::{VolumeTable, VolumeUse};
