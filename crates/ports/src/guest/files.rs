//! Files of a guest, one at a time.

use std::pin::Pin;

use async_trait::async_trait;
use futures::Stream;
use microvm_types::files::{FileList, FileOwner, FileStat, WatchEvent, WriteOptions};

use super::content::ContentStream;
use super::{GuestError, GuestPath};

/// Changes below a path in the order in which the guest saw them.
pub type Changes = Pin<Box<dyn Stream<Item = Result<WatchEvent, GuestError>> + Send>>;

/// Reads, writes and watches files of a guest.
#[async_trait]
pub trait GuestFiles: Send + Sync {
    /// Reads a file from `offset`, at most `length` bytes (`None`: to its end), with its holes.
    async fn read_file(
        &self,
        path: &GuestPath,
        offset: u64,
        length: Option<u64>,
    ) -> Result<(FileStat, ContentStream), GuestError>;

    /// Writes a whole file: to a temporary name beside it, then renamed into place when `data` has ended without error.
    /// `data` is taken to its end. Returns the number of bytes, holes counted in full, which the guest has confirmed.
    async fn write_file(
        &self,
        path: &GuestPath,
        options: &WriteOptions,
        data: ContentStream,
    ) -> Result<u64, GuestError>;

    /// Description of the entry at a path; symbolic links are not followed.
    async fn stat(&self, path: &GuestPath) -> Result<FileStat, GuestError>;

    /// Entries of a directory down to `depth` levels (1: its own), at most 100,000; whether that is all is said.
    async fn list(&self, path: &GuestPath, depth: u32) -> Result<FileList, GuestError>;

    /// Makes a directory, with parents if asked; what is made belongs to `owner` (`None`: root).
    async fn make_directory(
        &self,
        path: &GuestPath,
        mode: u32,
        parents: bool,
        owner: Option<&FileOwner>,
    ) -> Result<(), GuestError>;

    /// Renames within the guest.
    async fn rename(&self, from: &GuestPath, to: &GuestPath) -> Result<(), GuestError>;

    /// Removes a file, or a directory with all that is in it if `recursive`.
    async fn remove(&self, path: &GuestPath, recursive: bool) -> Result<(), GuestError>;

    /// Reports changes below a path until dropped.
    async fn watch(
        &self,
        path: &GuestPath,
        recursive: bool,
    ) -> Result<Pin<Box<dyn Stream<Item = Result<WatchEvent, GuestError>> + Send>>, GuestError>;
}
