//! One file per group of routes.

pub(crate) mod archive;
pub(crate) mod changes;
mod command;
pub(crate) mod contexts;
pub(crate) mod encoded;
pub(crate) mod events;
pub(crate) mod exec;
pub(crate) mod execute;
pub(crate) mod exports;
pub(crate) mod files;
pub(crate) mod guest;
pub(crate) mod images;
pub(crate) mod kernels;
pub(crate) mod pools;
pub(crate) mod ports;
pub(crate) mod processes;
pub(crate) mod room;
pub(crate) mod snapshots;
pub(crate) mod start_commands;
pub(crate) mod system;
pub(crate) mod templates;
mod uploads;
pub(crate) mod vms;
pub(crate) mod volumes;
pub(crate) mod wait;
pub(crate) mod watch;
