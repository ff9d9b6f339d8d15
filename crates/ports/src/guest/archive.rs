//! Archives on their way to and from a guest.

use microvm_types::files::LeftOut;
use tokio::sync::oneshot;

use super::ByteStream;

/// An archive that a guest has unpacked.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PushedArchive {
    /// Bytes of the stream, which the guest has confirmed.
    pub bytes: u64,
    /// Entries that the guest could not make.
    pub left_out: LeftOut,
}

/// How holes of files stand in an archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Holes {
    /// As the zeros they are read as: any reader of tar streams understands it.
    Zeros,
    /// Files with holes are sparse entries of GNU's format 1.0 in pax.
    Map,
}

/// An archive that a guest packs.
pub struct PulledArchive {
    /// The tar stream.
    pub data: ByteStream,
    /// What is not in it: there when `data` has ended. An agent that is older than this sends nothing, and the receiver
    /// fails.
    pub left_out: oneshot::Receiver<LeftOut>,
}

impl std::fmt::Debug for PulledArchive {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("PulledArchive").finish_non_exhaustive()
    }
}
