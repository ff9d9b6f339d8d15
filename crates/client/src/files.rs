//! Files of a guest.

use bytes::Bytes;
use futures_util::{Stream, StreamExt as _, stream};
use microvm_api::files::FileList;
use microvm_api::operation::Operation as _;
use microvm_api::operations::file;
use microvm_api::queries::{
    self, AtPath, ListFiles, MakeDirectory, PullArchive, PushArchive, ReadFile, RemoveFile, RenameFile,
};
use microvm_api::query::{Mode, ModifiedTime, Owner};
use microvm_types::VmRef;
use microvm_types::extents::Content;
use microvm_types::files::{FileOwner, FileStat, FileTime, TransferSummary};
use tokio::sync::oneshot;

use crate::client::Client;
use crate::error::ClientError;
use crate::transfer::{self, ContentDownload, Download};

/// Options of a written file.
#[derive(Debug, Clone, Default)]
pub struct WriteFile {
    /// Permission bits; default as the server says.
    pub mode: Option<u32>,
    /// Owner of the file; default: the owner of the file that is replaced, or root.
    pub owner: Option<FileOwner>,
    /// Make missing parent directories.
    pub parents: bool,
    /// Time at which its content was last changed; default: now.
    pub modified: Option<FileTime>,
}

fn owned(owner: Option<&FileOwner>) -> Option<Owner> {
    owner.cloned().map(Owner)
}

impl WriteFile {
    fn query(&self, path: &[u8]) -> queries::WriteFile {
        queries::WriteFile {
            path: path.into(),
            mode: self.mode.map(Mode),
            owner: owned(self.owner.as_ref()),
            parents: self.parents,
            modified: self.modified.map(ModifiedTime),
        }
    }
}

/// Compares the checksum of what was sent with that of what arrived.
async fn compared(
    summary: Result<TransferSummary, ClientError>,
    sum: oneshot::Receiver<String>,
    action: &'static str,
) -> Result<TransferSummary, ClientError> {
    // The server's refusal first: it is why not all was sent.
    let summary = summary?;
    match sum.await {
        Ok(sent) if sent == summary.sha256 => Ok(summary),
        Ok(sent) => Err(ClientError::Damaged { sent, received: summary.sha256 }),
        Err(_) => Err(ClientError::Lost { action, detail: "the answer came before all was sent".to_owned() }),
    }
}

/// Paths are bytes; all fail with [`ClientError`].
#[expect(clippy::missing_errors_doc, reason = "said once for all above")]
impl Client {
    /// Type, size, owner and times of what is at a path.
    pub async fn stat(&self, vm: &VmRef, path: &[u8]) -> Result<FileStat, ClientError> {
        self.call::<file::Stat>(vm, &AtPath { path: path.into() }, ()).await
    }

    /// Entries of a directory down to `depth` levels.
    pub async fn list_files(&self, vm: &VmRef, path: &[u8], depth: u32) -> Result<FileList, ClientError> {
        self.call::<file::List>(vm, &ListFiles { path: path.into(), depth }, ()).await
    }

    /// SHA-256 of a file, computed in the guest.
    pub async fn hash_file(&self, vm: &VmRef, path: &[u8]) -> Result<String, ClientError> {
        Ok(self.call::<file::Hash>(vm, &AtPath { path: path.into() }, ()).await?.sha256)
    }

    /// Makes a directory and its parents, for an owner (default: root).
    pub async fn make_directory(
        &self,
        vm: &VmRef,
        path: &[u8],
        owner: Option<&FileOwner>,
    ) -> Result<(), ClientError> {
        let query = MakeDirectory { path: path.into(), mode: None, parents: true, owner: owned(owner) };
        self.call::<file::MakeDir>(vm, &query, ()).await
    }

    /// Renames within the guest.
    pub async fn rename(&self, vm: &VmRef, from: &[u8], to: &[u8]) -> Result<(), ClientError> {
        self.call::<file::Rename>(vm, &RenameFile { from: from.into(), to: to.into() }, ()).await
    }

    /// Removes a file or directory.
    pub async fn remove(&self, vm: &VmRef, path: &[u8], recursive: bool) -> Result<(), ClientError> {
        self.call::<file::Remove>(vm, &RemoveFile { path: path.into(), recursive }, ()).await
    }

    /// Reads a file.
    pub async fn read_file(&self, vm: &VmRef, path: &[u8]) -> Result<(FileStat, Download), ClientError> {
        let query = ReadFile { path: path.into(), offset: 0, length: None };
        let data = self.call::<file::Read>(vm, &query, ()).await?;
        Ok((data.file_stat()?, data))
    }

    /// Reads a file, its holes told by their length.
    pub async fn read_content(
        &self,
        vm: &VmRef,
        path: &[u8],
    ) -> Result<(FileStat, ContentDownload), ClientError> {
        let data = self.call::<file::ReadExtents>(vm, &AtPath { path: path.into() }, ()).await?;
        Ok((data.file_stat()?, ContentDownload::new(data)))
    }

    /// Writes a whole file; compares what was sent with what arrived.
    pub async fn write_file<S>(
        &self,
        vm: &VmRef,
        path: &[u8],
        options: &WriteFile,
        data: S,
    ) -> Result<TransferSummary, ClientError>
    where
        S: Stream<Item = std::io::Result<Bytes>> + Send + 'static,
    {
        let (body, sum) = transfer::hashed(data);
        let summary = self.call::<file::Write>(vm, &options.query(path), body).await;
        compared(summary, sum, file::Write::NAME).await
    }

    /// The same with holes, which cross as their length. A server that is older than this answers with the problem
    /// `route_not_found`, and nothing was written. The SHA-256 of the summary is that of the body that crossed.
    pub async fn write_content<S>(
        &self,
        vm: &VmRef,
        path: &[u8],
        options: &WriteFile,
        content: S,
    ) -> Result<TransferSummary, ClientError>
    where
        S: Stream<Item = std::io::Result<Content>> + Send + 'static,
    {
        let body = content.flat_map(|piece| {
            let (record, error) = match piece {
                Ok(piece) => (Some(piece.into_record()), None),
                Err(error) => (None, Some(Err(error))),
            };
            stream::iter(record.into_iter().flatten().map(Ok).chain(error))
        });
        let (body, sum) = transfer::hashed(body);
        let summary = self.call::<file::WriteExtents>(vm, &options.query(path), body).await;
        compared(summary, sum, file::WriteExtents::NAME).await
    }

    /// Unpacks a tar stream below a directory of the guest, for an owner (default: as the stream says).
    pub async fn push_archive<S>(
        &self,
        vm: &VmRef,
        path: &[u8],
        owner: Option<&FileOwner>,
        data: S,
    ) -> Result<TransferSummary, ClientError>
    where
        S: Stream<Item = std::io::Result<Bytes>> + Send + 'static,
    {
        let query = PushArchive { path: path.into(), owner: owned(owner) };
        let (body, sum) = transfer::hashed(data);
        compared(self.call::<file::Push>(vm, &query, body).await, sum, file::Push::NAME).await
    }

    /// Packs a file or directory of the guest as a tar stream, names relative to its parent. With `holes` files that have some
    /// are sparse entries of GNU's format 1.0, if the VM's agent knows how: one does that says what files take on its disk
    /// ([`FileStat::allocated`]).
    pub async fn pull_archive(&self, vm: &VmRef, path: &[u8], holes: bool) -> Result<Download, ClientError> {
        let query = PullArchive { path: path.into(), exclude: Vec::new(), holes };
        self.call::<file::Pull>(vm, &query, ()).await
    }
}
