//! The agent's end of the channel.

mod find;
mod link;
mod port;

pub(crate) use find::open_port;
pub(crate) use link::Link;
pub(crate) use port::Port;
