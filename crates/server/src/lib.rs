//! The HTTP edge: REST v1 over a unix socket, for callers of this host.
//!
//! ```text
//!  socket ─▶ connections (peer, limits) ─▶ request id, log ─▶ charge ─▶ route ─▶ permission ─▶ path, query, body ─▶ handler ─▶ core
//! ```
//!
//! Operations are rows of [`microvm_api::operations`], each with the permission it needs; `routes` ties each to a handler
//! that takes and answers what the row says. The same rows make the OpenAPI document. What this crate does *not* do:
//! decide what a VM may do (core does), open drivers (the binary does), or listen on a network (the seam for that is
//! [`caller::Authenticator`]).

/// The helpers of the tests in `tests` name this crate so.
#[cfg(test)]
extern crate self as microvm_server;

mod app;
mod body;
mod bounds;
mod call;
pub mod caller;
mod charge;
mod collected;
mod connections;
mod contexts;
mod convert;
mod disk_usage;
mod extents;
mod failure;
mod handlers;
mod host;
mod limits;
mod lines;
mod listed;
mod listener;
mod long_fields;
mod metrics;
mod observe;
mod reply;
mod requirements;
mod routes;
mod serve;
mod session;
mod share;
mod turns;

pub use app::{App, AppSettings};
pub use bounds::Bounds;
pub use limits::Limits;
pub use listener::{BindError, BoundServer, lock_path, socket_path};
pub use serve::{router, serve};
