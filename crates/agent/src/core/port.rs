//! The guest's end of the channel.

use std::future::Future;
use std::io;

use bytes::BytesMut;

/// Result of one read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ReadOutcome {
    /// Some bytes were appended.
    Bytes,
    /// Nothing is there right now.
    Nothing,
    /// No host is connected right now.
    HungUp,
}

/// Relation of reads to the writes of the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Boundaries {
    /// The first write of a new host begins a read of its own (virtio-serial).
    Kept,
    /// A plain stream of bytes: the first write of a new host may share a read with the last bytes of the old one, half
    /// a frame included (a terminal, TCP, a unix socket behind a relay).
    Lost,
}

/// A non-blocking stream of bytes to the host that outlives each host.
pub(crate) trait Port {
    /// Relation of reads to writes, the same for the life of the port.
    fn boundaries(&self) -> Boundaries;

    /// Reads once, to the end of `buffer`.
    ///
    /// # Errors
    /// If the device failed for good. A host that went away is no error.
    fn read(&self, buffer: &mut BytesMut) -> io::Result<ReadOutcome>;

    /// Writes once; `None` if nothing can be written now.
    ///
    /// # Errors
    /// As for [`Self::read`].
    fn write(&self, bytes: &[u8]) -> io::Result<Option<usize>>;

    /// Sets whether [`Self::changed`] reports room to write, at once if there is room now.
    ///
    /// # Errors
    /// As for [`Self::read`].
    fn want_room(&mut self, wanted: bool) -> io::Result<()>;

    /// Waits until the device has changed since the last call: bytes came, a host came or went, and there is room to
    /// write if that was wanted. Cancelling is safe.
    ///
    /// # Errors
    /// As for [`Self::read`].
    fn changed(&self) -> impl Future<Output = io::Result<()>>;
}
