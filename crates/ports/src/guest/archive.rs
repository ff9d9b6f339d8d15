//! Archives on their way to and from a guest.

use async_trait::async_trait;
use microvm_types::files::{FileOwner, LeftOut};
use tokio::sync::oneshot;

use super::{ByteStream, GuestError, GuestPath};

/// An archive that a guest has unpacked.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PushedArchive {
    /// Bytes of the stream, which the guest has confirmed.
    pub bytes: u64,
    /// Entries that the guest could not make.
    pub left_out: LeftOut,
}

/// Form of the holes of files in an archive.
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
    /// Entries that are missing in it: there when `data` has ended. An agent that is older than this sends nothing, and the receiver
    /// fails.
    pub left_out: oneshot::Receiver<LeftOut>,
}

impl std::fmt::Debug for PulledArchive {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("PulledArchive").finish_non_exhaustive()
    }
}

/// Moves whole trees into and out of a guest, and tells what arrived.
#[async_trait]
pub trait GuestArchives: Send + Sync {
    /// Unpacks a tar stream below a directory (made if missing), FIFOs and devices too. Entries that would leave it are
    /// refused; what the guest cannot make is left out. All of it belongs to `owner` (`None`: as the archive says). `data`
    /// is taken to its end.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`](microvm_types::ErrorKind::Unsupported) from an agent that is older than owners, unless it is root.
    async fn push_archive(
        &self,
        path: &GuestPath,
        owner: Option<&FileOwner>,
        data: ByteStream,
    ) -> Result<PushedArchive, GuestError>;

    /// Packs a file or directory as a tar stream (pax, names relative to the path's parent), FIFOs and devices too.
    /// `exclude`: absolute paths left out with all below them. A guest that cannot tell holes as asked packs zeros.
    async fn pull_archive(
        &self,
        path: &GuestPath,
        exclude: &[Vec<u8>],
        holes: Holes,
    ) -> Result<PulledArchive, GuestError>;

    /// Packs the directory `path` as the root of an image, as a tar stream (pax, names relative to `path`): all that is on
    /// its file system, and nothing that is mounted over it. Special files, hard links, extended attributes and times come
    /// exactly; sockets, which mean nothing without their owner, and what the agent itself wrote into `/etc/hosts` do not.
    async fn pull_root(&self, path: &GuestPath) -> Result<PulledArchive, GuestError>;

    /// Packs the changes of the guest's root against its image as a layer (OCI image specification: a tar stream with
    /// whiteouts), all of one moment: writes to the root wait until it is packed. What is left out is as for
    /// [`Self::pull_root`].
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`](microvm_types::ErrorKind::Unsupported) from an agent that is older than this.
    async fn pull_layer(&self) -> Result<PulledArchive, GuestError>;

    /// SHA-256 of a file, computed in the guest (slow under emulation; only on request).
    async fn hash_file(&self, path: &GuestPath) -> Result<String, GuestError>;
}
