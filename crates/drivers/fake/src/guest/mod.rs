//! A guest of our own making: its files, processes, programs and shell, and what of it is saved.

pub(crate) mod archive;
pub(crate) mod disks;
pub(crate) mod echo;
mod pairs;
pub(crate) mod process;
mod programs;
pub(crate) mod saved_guest;
mod shell;
pub(crate) mod system;
pub(crate) mod tree;
