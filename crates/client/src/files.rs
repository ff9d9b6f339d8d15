//! Files of a guest.

use std::fmt::Write as _;

use bytes::Bytes;
use futures_util::{Stream, StreamExt as _, stream};
use hyper::body::Incoming;
use hyper::{Method, Response};
use microvm_api::FILE_STAT_HEADER;
use microvm_api::files::{FileHash, FileList};
use microvm_api::query::encode;
use microvm_types::VmRef;
use microvm_types::extents::{self, Content};
use microvm_types::files::{FileOwner, FileStat, FileTime, TransferSummary};

use crate::client::{Client, read_json};
use crate::error::ClientError;
use crate::transfer::{self, ContentDownload, Download};

/// How a file is written.
#[derive(Debug, Clone, Default)]
pub struct WriteFile {
    /// Permission bits; default as the server says.
    pub mode: Option<u32>,
    /// Who gets it; default: the owner of the file that is replaced, or root.
    pub owner: Option<FileOwner>,
    /// Make missing parent directories.
    pub parents: bool,
    /// When its content was last changed; default: now.
    pub modified: Option<FileTime>,
}

/// The parameter of an owner.
fn owned(owner: Option<&FileOwner>) -> String {
    owner.map_or_else(String::new, |owner| format!("&owner={}", encode(owner.text().as_bytes())))
}

impl WriteFile {
    fn query(&self, path: &[u8]) -> String {
        let mut query = format!("parents={}&path={}", self.parents, encode(path));
        // Writing to a string cannot fail.
        if let Some(mode) = self.mode {
            let _ = write!(query, "&mode={mode:o}");
        }
        query.push_str(&owned(self.owner.as_ref()));
        if let Some(time) = self.modified {
            let _ = write!(query, "&modified={time}");
        }
        query
    }
}

/// Paths are bytes; all fail with [`ClientError`].
#[expect(clippy::missing_errors_doc, reason = "said once for all above")]
impl Client {
    /// What is at a path.
    pub async fn stat(&self, vm: &VmRef, path: &[u8]) -> Result<FileStat, ClientError> {
        self.get(&format!("/vms/{vm}/files/stat?path={}", encode(path)), "looking at a file").await
    }

    /// Entries of a directory down to `depth` levels.
    pub async fn list_files(&self, vm: &VmRef, path: &[u8], depth: u32) -> Result<FileList, ClientError> {
        let path = format!("/vms/{vm}/files/list?depth={depth}&path={}", encode(path));
        self.get(&path, "listing files").await
    }

    /// SHA-256 of a file, computed in the guest.
    pub async fn hash_file(&self, vm: &VmRef, path: &[u8]) -> Result<String, ClientError> {
        let hash: FileHash =
            self.get(&format!("/vms/{vm}/files/hash?path={}", encode(path)), "hashing a file").await?;
        Ok(hash.sha256)
    }

    /// Makes a directory and its parents, for an owner (default: root).
    pub async fn make_directory(
        &self,
        vm: &VmRef,
        path: &[u8],
        owner: Option<&FileOwner>,
    ) -> Result<(), ClientError> {
        let path = format!("/vms/{vm}/files/mkdir?parents=true&path={}{}", encode(path), owned(owner));
        self.empty(Method::POST, &path, None::<&()>, "making a directory").await
    }

    /// Renames within the guest.
    pub async fn rename(&self, vm: &VmRef, from: &[u8], to: &[u8]) -> Result<(), ClientError> {
        let path = format!("/vms/{vm}/files/rename?from={}&to={}", encode(from), encode(to));
        self.empty(Method::POST, &path, None::<&()>, "renaming a file").await
    }

    /// Removes a file or directory.
    pub async fn remove(&self, vm: &VmRef, path: &[u8], recursive: bool) -> Result<(), ClientError> {
        let path = format!("/vms/{vm}/files?recursive={recursive}&path={}", encode(path));
        self.empty(Method::DELETE, &path, None::<&()>, "removing a file").await
    }

    /// Reads a file.
    pub async fn read_file(&self, vm: &VmRef, path: &[u8]) -> Result<(FileStat, Download), ClientError> {
        let path = format!("/vms/{vm}/files?path={}", encode(path));
        let (stat, response) = self.described(&path).await?;
        Ok((stat, Download::new(response)))
    }

    /// Reads a file, its holes told by their length.
    pub async fn read_content(
        &self,
        vm: &VmRef,
        path: &[u8],
    ) -> Result<(FileStat, ContentDownload), ClientError> {
        let path = format!("/vms/{vm}/files/extents?path={}", encode(path));
        let (stat, response) = self.described(&path).await?;
        Ok((stat, ContentDownload::new(Download::new(response))))
    }

    /// A file that is downloaded, and what it is.
    async fn described(&self, path: &str) -> Result<(FileStat, Response<Incoming>), ClientError> {
        let response = self.send_json(Method::GET, path, None::<&()>, "reading a file").await?;
        let stat = response.headers().get(FILE_STAT_HEADER).map(|value| value.as_bytes());
        let stat =
            stat.ok_or_else(|| ClientError::Answer("a file came without its description".to_owned()))?;
        let stat = serde_json::from_slice(stat).map_err(|error| ClientError::Answer(error.to_string()))?;
        Ok((stat, response))
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
        let target = format!("/vms/{vm}/files?{}", options.query(path));
        self.push(&target, "application/octet-stream", data, "writing a file").await
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
        let target = format!("/vms/{vm}/files/extents?{}", options.query(path));
        let body = content.flat_map(|piece| {
            let (record, error) = match piece {
                Ok(piece) => (Some(piece.into_record()), None),
                Err(error) => (None, Some(Err(error))),
            };
            stream::iter(record.into_iter().flatten().map(Ok).chain(error))
        });
        self.push(&target, extents::MEDIA_TYPE, body, "writing a file").await
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
        let target = format!("/vms/{vm}/archive?path={}{}", encode(path), owned(owner));
        self.push(&target, "application/x-tar", data, "sending an archive").await
    }

    /// Packs a file or directory of the guest as a tar stream, names relative to its parent. With `holes` files that have some
    /// are sparse entries of GNU's format 1.0, if the VM's agent knows how: one does that says what files take on its disk
    /// ([`FileStat::allocated`]).
    pub async fn pull_archive(&self, vm: &VmRef, path: &[u8], holes: bool) -> Result<Download, ClientError> {
        let holes = if holes { "&holes=true" } else { "" };
        let path = format!("/vms/{vm}/archive?path={}{holes}", encode(path));
        let response = self.send_json(Method::GET, &path, None::<&()>, "receiving an archive").await?;
        Ok(Download::new(response))
    }

    async fn push<S>(
        &self,
        target: &str,
        content_type: &'static str,
        data: S,
        action: &'static str,
    ) -> Result<TransferSummary, ClientError>
    where
        S: Stream<Item = std::io::Result<Bytes>> + Send + 'static,
    {
        let (body, sum) = transfer::hashed(data);
        let response = self.request(Method::PUT, target, Some(content_type), body, action).await?;
        let summary: TransferSummary = read_json(response, action).await?;
        match sum.await {
            Ok(sent) if sent == summary.sha256 => Ok(summary),
            Ok(sent) => Err(ClientError::Damaged { sent, received: summary.sha256 }),
            Err(_) => {
                Err(ClientError::Lost { action, detail: "the answer came before all was sent".to_owned() })
            }
        }
    }
}
