//! Bounds of single requests into guests, as the operator sets them.

use std::time::Duration;

use camino::Utf8PathBuf;

/// Most bytes of one argument or variable of a program, the NUL at its end not counted. (Linux, `include/uapi/linux/binfmts.h`:
/// `MAX_ARG_STRLEN` is 32 pages of 4 KiB.)
pub(crate) const ARGUMENT_MAX: usize = 131_071;

/// Most bytes of arguments and variables that one message to a guest carries, somewhat less than its frame.
pub(crate) const MESSAGE_MAX: usize = 240 << 10;

/// Bounds of requests into guests. The default is what `microvm serve` uses without settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bounds {
    /// Longest time limit that a request may give a command. One without a limit of its own, which only streamed commands can
    /// be, is not bounded by it.
    pub command_time: Duration,
    /// Longest command in bytes: a text for the shell, or program and arguments together. At most [`Self::COMMAND_BYTES_MAX`].
    pub command_bytes: usize,
    /// Largest upload in bytes: of a file what it holds, holes included, of an archive the tar stream. `None`: the guest's disk.
    pub upload_bytes: Option<u64>,
    /// Absolute directory of guests outside of which nothing is uploaded, made or renamed; `None`: everywhere.
    pub upload_root: Option<Utf8PathBuf>,
}

impl Bounds {
    /// Longest command in bytes that an operator can allow: what requests and guests can carry.
    pub const COMMAND_BYTES_MAX: usize = 1 << 20;
}

impl Default for Bounds {
    /// An hour and 1 MiB (FEATURES rows C12 and C17), and uploads of any size to any place.
    fn default() -> Self {
        Self {
            command_time: Duration::from_hours(1),
            command_bytes: Self::COMMAND_BYTES_MAX,
            upload_bytes: None,
            upload_root: None,
        }
    }
}
