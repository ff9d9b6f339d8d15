//! Everything about the agent that is the same on every operating system.
//!
//! ```text
//!   link ─▶ operations ─┬─▶ exec      start, output, input, end of processes      process: what is known of one
//!     │                 ├─▶ identity  epoch, parts, start commands
//!     ▼                 └─▶ tcp · measure · Files · System
//!   port (trait)                              (traits of `platform`)
//! ```
//!
//! The traits in [`port`] and [`platform`] are all that the core knows of the system below it; an operating system is a
//! module of `crate::platform` that implements them. What the core does *not* do: name a descriptor, a path syntax, a
//! signal or an error number. The test `portable` holds it to that.

pub(crate) mod agent;
pub(crate) mod blocking;
pub(crate) mod bulk;
pub(crate) mod console;
mod epoch;
mod exec;
pub(crate) mod failure;
mod identity;
pub(crate) mod link;
mod measure;
mod operations;
pub(crate) mod platform;
pub(crate) mod port;
#[cfg(test)]
mod portable;
mod process;
mod start_commands;
mod tcp;
