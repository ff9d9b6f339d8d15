//! The cage of a VMM: its file system, its disks and folders, and the rights that it gives up.

pub(crate) mod folders;
mod read_only;
mod setup;

pub(crate) use read_only::{LOCK_STEP, OPEN_STEP, opens_inside, source_of};
pub(crate) use setup::{CageError, drop_rights, enter_file_system, execute, place_descriptor};
