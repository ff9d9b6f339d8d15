//! The guest as a system: identity, figures, shared folders, shutdown.

pub(super) mod clock;
pub(super) mod entropy;
pub(super) mod health;
pub(super) mod hosts;
pub(super) mod info;
mod line;
pub(super) mod names;
pub(super) mod processes;
pub(super) mod shares;
pub(crate) mod shutdown;
pub(super) mod volumes;
