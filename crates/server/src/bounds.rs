//! Bounds of single requests into guests, as the operator sets them.

use std::time::Duration;

use camino::Utf8PathBuf;

/// Most bytes of one argument or variable of a program, the NUL at its end not counted. (Linux, `include/uapi/linux/binfmts.h`:
/// `MAX_ARG_STRLEN` is 32 pages of 4 KiB.)
pub(crate) const ARGUMENT_MAX: usize = 131_071;

/// Most bytes of a request for a command, as it is encoded for the guest: a frame of control (`MAX_CONTROL` of `docs/protocol.md`, 256 KiB)
/// less what stands around it.
pub(crate) const MESSAGE_MAX: usize = (256 << 10) - 1024;

/// Most bytes that Linux gives a program of arguments and variables together, each with its NUL and its pointer (`fs/exec.c`,
/// `bprm_stack_limits`: a quarter of the stack, which is 8 MiB), less what a guest's own environment takes.
pub(crate) const PROGRAM_MAX: usize = (2 << 20) - (64 << 10);

/// Bounds of requests into guests. The default is what `microvm serve` uses without settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bounds {
    /// Longest time limit that a request may give a command. One without a limit of its own, which only streamed commands can
    /// be, is not bounded by it.
    pub command_time: Duration,
    /// Longest command in bytes: a text for the shell, or program and arguments together, each with the NUL behind it. At most
    /// [`Self::COMMAND_BYTES_MAX`]. Commands of the server itself, such as that of a shell, are not bounded by it.
    pub command_bytes: usize,
    /// Largest upload in bytes: of a file what it holds, holes included, of an archive the tar stream. `None`: the guest's disk.
    pub upload_bytes: Option<u64>,
    /// Absolute directory of guests outside of which nothing is uploaded, made or renamed; `None`: everywhere.
    pub upload_root: Option<Utf8PathBuf>,
}

impl Bounds {
    /// Longest command in bytes that an operator can allow: what requests and guests can carry.
    pub const COMMAND_BYTES_MAX: usize = microvm_api::exec::COMMAND_MAX;
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
