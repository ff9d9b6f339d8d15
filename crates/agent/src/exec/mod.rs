//! Processes started for the host.
//!
//! ```text
//!   request ─▶ plan (user, path, environment) ─▶ spawn ─▶ Process ─▶ table
//!                                                   │ pumps: pipe or terminal ─▶ output buffers ─▶ reader's stream
//!                                                   └ reaper ─▶ exit status
//! ```

mod clone;
mod control_group;
mod life;
mod observer;
mod output;
mod plan;
mod process;
mod pump;
mod reader;
mod reaper;
mod spawn;
mod start;
mod stdio;
mod table;
pub(crate) mod users;

pub(crate) use control_group::ControlGroups;
pub(crate) use observer::read_output;
pub(crate) use plan::Defaults;
pub(crate) use reader::{attach, exec};
pub(crate) use reaper::Reaper;
pub(crate) use start::{start, start_bare};
pub(crate) use table::Table;
