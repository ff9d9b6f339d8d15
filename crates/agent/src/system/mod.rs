//! The guest as a system: identity, figures, ports, the end.

mod clock;
pub(crate) mod entropy;
pub(crate) mod health;
pub(crate) mod hosts;
pub(crate) mod identity;
pub(crate) mod info;
mod line;
pub(crate) mod measure;
pub(crate) mod port;
pub(crate) mod processes;
pub(crate) mod shares;
pub(crate) mod shutdown;
