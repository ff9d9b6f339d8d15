//! Typed client of the REST interface over the server's unix socket; used by the command line and by tests.
//!
//! Every operation is a row of [`microvm_api::operations`], which [`Client::call`] makes the request of and reads the answer
//! of; the methods of [`Client`] with names are one call each. A command is an [`ExecSession`]; [`copy`] moves files and
//! directories; [`sandbox`] has the verbs of several requests. What this crate does *not* do: start a server, print, or know
//! where the socket is. It sends a request a second time only if its row says that it is safe, and only if a kept connection
//! was closed.
//!
//! Dropping a future closes its connection, which ends the request on the server too.

mod call;
mod client;
mod connection;
mod contexts;
pub mod copy;
mod endpoint;
mod error;
mod exec;
mod files;
mod forward;
mod images;
mod lines;
mod pools;
mod ports;
pub mod sandbox;
mod snapshots;
mod socket;
mod system;
mod transfer;
mod vms;
mod volumes;
mod websocket;

pub use call::{Made, Received, Sent, Whole};
pub use client::Client;
pub use error::{ClientError, LOCAL_FILE};
pub use exec::{ExecEvent, ExecSession, ExecStream, ExecWriter, Started};
pub use files::WriteFile;
pub use forward::Forward;
pub use lines::Lines;
pub use ports::PortStream;
pub use socket::{ShortPath, bind_path};
pub use transfer::{Body, ContentDownload, Download};
pub use vms::{ConsolePart, VmQuery};
pub use websocket::EventStream;
