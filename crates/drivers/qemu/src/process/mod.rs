//! QEMU as a process: its command line, its cage, its user id, its logs and what it costs.

pub(crate) mod command_line;
pub(crate) mod console;
mod shares;
mod start;
pub(crate) mod usage;
pub(crate) mod users;

pub(crate) use start::{died, give_files, start};
