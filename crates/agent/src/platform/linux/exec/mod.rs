//! Programs on Linux.
//!
//! ```text
//!   request ─▶ plan (user, path, environment) ─▶ spawn (clone, control group) ─▶ child
//!              stdio (pipes or terminal) ─▶ streams          reaper ─▶ exit status
//! ```

mod child;
mod clone;
mod control_group;
mod launch;
mod plan;
mod reaper;
mod spawn;
mod stdio;
mod streams;
pub(super) mod users;

pub(super) use child::LinuxChild;
pub(super) use control_group::ControlGroups;
pub(super) use launch::{Tools, start, start_bare};
pub(super) use reaper::Reaper;
pub(super) use streams::{InputEnd, OutputEnd};
