//! Processes started for the host: their state, their output, the table that finds them by id.

mod output;
mod started;
mod table;

pub(in crate::core) use output::{MOST_READ, OutputBuffer};
pub(in crate::core) use started::{Process, shown_command};
pub(in crate::core) use table::Table;
