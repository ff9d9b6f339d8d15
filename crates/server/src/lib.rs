//! The HTTP edge: REST v1 over a unix socket, for callers of this host.
//!
//! ```text
//!  socket ─▶ connections (peer, limits) ─▶ request id, log ─▶ charge ─▶ route table ─▶ permission ─▶ handler ─▶ core
//! ```
//!
//! Every route is one row of [`routes::table`] with the permission it needs; a row without one cannot be written. The
//! same table makes the OpenAPI document. What this crate does *not* do: decide what a VM may do (core does), open
//! drivers (the binary does), or listen on a network (the seam for that is [`caller::Authenticator`]).

mod app;
mod body;
pub mod caller;
mod charge;
mod collected;
mod connections;
mod convert;
mod extents;
mod extract;
mod failure;
mod handlers;
mod host;
mod limits;
mod lines;
mod listed;
mod listener;
mod metrics;
mod observe;
mod openapi;
pub mod routes;
mod serve;
mod session;
mod share;

pub use app::{App, AppSettings};
pub use limits::Limits;
pub use listener::{BindError, BoundServer, lock_path, socket_path};
pub use serve::{router, serve};
