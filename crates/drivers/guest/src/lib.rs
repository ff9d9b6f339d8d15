//! The host's side of the channel to a guest: [`GuestConnector`](microvm_ports::GuestConnector) over unix sockets.
//!
//! ```text
//!   connect ─▶ handshake ─▶ Channel ─▶ push of the identity ─▶ Guest
//!                             │ reader: socket ─▶ frames ─▶ streams
//!                             │ writer: streams ─▶ frames ─▶ socket
//!                             └ heartbeat
//! ```
//!
//! The guest is hostile: frames are checked against the rules of `microvm-protocol`, every text it sends is cut and
//! cleaned, runs of zeros it announces are expanded only as fast as they are taken, and a guest that is silent or
//! breaks a rule loses its channel. What this crate does *not* do: start machines, decide what a lost channel means for
//! a VM, keep anything after the channel is gone.

mod channel;
mod config;
mod connector;
mod error;
mod exec;
mod files;
mod guest;
mod handshake;
mod identity;
mod list;
mod lists;
mod owners;
mod sanitize;
mod silence;
mod socket;
mod system;
mod transfer;
mod unary;

pub use config::GuestConfig;
pub use connector::SocketGuestConnector;
