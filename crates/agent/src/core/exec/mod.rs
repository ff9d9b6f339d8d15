//! Commands for the host.
//!
//! ```text
//!   request ─▶ Programs::start ─▶ Process ─▶ table
//!                 │ pumps: output ─▶ buffers ─▶ stream of the reader, or of an observer
//!                 └ exited ─▶ exit status
//! ```

mod life;
mod observer;
mod pump;
mod reader;
mod start;

pub(super) use observer::read_output;
pub(super) use reader::{attach, exec};
pub(super) use start::start;
