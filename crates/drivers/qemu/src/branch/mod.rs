//! Branching of machines: device state, disks and memory saved in one short pause, and loaded into new ones.

mod branching;
mod flatten;
pub(crate) mod load;
mod new_overlays;
mod saving;
mod state_file;

pub(crate) use branching::Branching;
pub(crate) use saving::Saving;
