//! Copies into a guest.

use std::ffi::OsStr;
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use crate::{Client, WriteFile};
use bytes::Bytes;
use futures_util::{Stream, TryStreamExt as _};
use microvm_types::files::{FileKind, FileOwner, FileTime, LeftOut, TransferSummary};
use microvm_types::{ErrorKind, PathStyle, VmRef};
use tokio::io::AsyncRead;
use tokio::sync::{mpsc, oneshot};
use tokio_util::io::ReaderStream;

use crate::copy::extents::ExtentReader;
use crate::copy::sum::Sum;
use crate::copy::{Moved, extents, pack};
use crate::error::ClientError;

/// Bytes that are read and sent at once.
const PART: usize = 128 * 1024;

impl From<TransferSummary> for Moved {
    fn from(summary: TransferSummary) -> Self {
        let TransferSummary { bytes, sha256, left_out } = summary;
        Self { bytes, sha256: Some(sha256), left_out, left_out_is_complete: true }
    }
}

/// Copies a file or directory to a path of a guest (in the style of the guest), or into it if it is a directory, for
/// `owner`.
///
/// # Errors
/// If something cannot be read here or written there.
pub async fn push(
    client: &Client,
    vm: &VmRef,
    from: &Path,
    to: &[u8],
    style: PathStyle,
    owner: &FileOwner,
) -> Result<Moved, ClientError> {
    let metadata = std::fs::metadata(from).map_err(|error| ClientError::file("reading", from, &error))?;
    let mut target = to.to_vec();
    if is_directory(client, vm, to, style).await? {
        // `cp . vm:/x` means the content, as there is no name to give it.
        let name = PathStyle::Posix.base_name(from.as_os_str().as_bytes());
        if !name.is_empty() {
            target = style.join(to, name);
        }
    } else if style.ends_in_separator(to) && !metadata.is_dir() {
        let detail = format!("{} is not a directory in the VM: make it first", String::from_utf8_lossy(to));
        return Err(ClientError::refused(ErrorKind::NotFound, "directory_not_found", detail));
    }
    if metadata.is_dir() {
        let (folder, name) = (style.parent(&target), style.base_name(&target));
        if name.is_empty() || kind(client, vm, &target, style).await?.is_some() {
            return push_directory(client, vm, from, &target, owner).await;
        }
        // A new one is an entry itself: it is to have its mode and time.
        // The archive is unpacked below the parent, so that has to be there.
        client.make_directory(vm, &folder, Some(owner)).await?;
        return push_packed(client, vm, from, (name, &folder), owner).await;
    }
    let file = std::fs::File::open(from).map_err(|error| ClientError::file("opening", from, &error))?;
    let options = WriteFile {
        mode: Some(metadata.mode() & 0o777),
        owner: Some(owner.clone()),
        parents: true,
        modified: modified(&metadata),
    };
    // `st_blocks` counts 512 bytes (stat(2)).
    if metadata.is_file() && metadata.blocks().saturating_mul(512) < metadata.len() {
        let file = file.try_clone().map_err(|error| ClientError::file("opening", from, &error))?;
        if let Some(moved) = push_sparse(client, vm, file, &target, &options).await? {
            return Ok(moved);
        }
    }
    let data = ExtentReader::new(file).into_stream();
    Ok(client.write_file(vm, &target, &options, data).await?.into())
}

/// Copies a file whose holes cross as their length; `None`, with nothing sent, to a server that is older than this.
async fn push_sparse(
    client: &Client,
    vm: &VmRef,
    file: std::fs::File,
    target: &[u8],
    options: &WriteFile,
) -> Result<Option<Moved>, ClientError> {
    let sum = Arc::new(Mutex::new(Sum::default()));
    let counted = Arc::clone(&sum);
    let content = extents::content(file).inspect_ok(move |piece| {
        counted.lock().unwrap_or_else(PoisonError::into_inner).add_content(piece);
    });
    match client.write_content(vm, target, options, content).await {
        Ok(_) => {
            let sum = std::mem::take(&mut *sum.lock().unwrap_or_else(PoisonError::into_inner));
            // A file is copied whole or not at all.
            Ok(Some(sum.moved(Some(&LeftOut::default()), LeftOut::default())))
        }
        // The server looks for the route before it reads the body, so nothing of the file was taken.
        Err(ClientError::Problem(problem)) if problem.code == "route_not_found" => Ok(None),
        Err(error) => Err(error),
    }
}

async fn is_directory(
    client: &Client,
    vm: &VmRef,
    path: &[u8],
    style: PathStyle,
) -> Result<bool, ClientError> {
    match kind(client, vm, path, style).await? {
        Some(FileKind::Directory) => Ok(true),
        // A link to a directory counts as that directory: a slash at the end makes the guest look through it.
        Some(FileKind::Symlink) => {
            Ok(kind(client, vm, &style.join(path, b""), style).await? == Some(FileKind::Directory))
        }
        _ => Ok(false),
    }
}

/// Kind of the entry at a path of a guest; `None` where nothing is, and for a link to a file that is named like a directory.
async fn kind(
    client: &Client,
    vm: &VmRef,
    path: &[u8],
    style: PathStyle,
) -> Result<Option<FileKind>, ClientError> {
    match client.stat(vm, path).await {
        Ok(stat) => Ok(Some(stat.kind)),
        Err(ClientError::Problem(problem))
            if problem.kind == ErrorKind::NotFound && problem.code != "vm_not_found" =>
        {
            Ok(None)
        }
        // ENOTDIR of the guest.
        Err(ClientError::Problem(problem))
            if problem.kind == ErrorKind::Invalid && style.ends_in_separator(path) =>
        {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// Copies the content of a directory into a directory of a guest, which is made if it is missing.
///
/// # Errors
/// If something cannot be read here or written there.
pub async fn push_directory(
    client: &Client,
    vm: &VmRef,
    from: &Path,
    to: &[u8],
    owner: &FileOwner,
) -> Result<Moved, ClientError> {
    if !from.is_dir() {
        let detail = format!("{} is not a directory: check the path", from.display());
        return Err(ClientError::invalid("not_a_directory", detail));
    }
    client.make_directory(vm, to, Some(owner)).await?;
    push_packed(client, vm, from, (b"", to), owner).await
}

/// Time at which a file was last changed; what is no file, such as a pipe, is as new as its copy.
fn modified(metadata: &std::fs::Metadata) -> Option<FileTime> {
    let nanoseconds = u32::try_from(metadata.mtime_nsec()).unwrap_or(0);
    metadata.is_file().then(|| FileTime::new(metadata.mtime(), nanoseconds))
}

/// Copies a directory under a name of its own into a folder of a guest; without a name: what is in it.
async fn push_packed(
    client: &Client,
    vm: &VmRef,
    from: &Path,
    (name, folder): (&[u8], &[u8]),
    owner: &FileOwner,
) -> Result<Moved, ClientError> {
    // An agent that says what files take on its disk knows maps of holes, too.
    let holes = client.stat(vm, b"/").await?.allocated.is_some();
    let (data, left_out) = packed(from.to_owned(), OsStr::from_bytes(name).into(), holes);
    let mut moved = Moved::from(client.push_archive(vm, folder, Some(owner), data).await?);
    // All was sent, so it was told before.
    moved.left_out.merge(left_out.await.unwrap_or_default());
    Ok(moved)
}

/// Unpacks a tar stream in a guest, for `owner`, else for the owners that it names.
///
/// # Errors
/// If the stream cannot be read, or the guest refuses it.
pub async fn push_stream(
    client: &Client,
    vm: &VmRef,
    to: &[u8],
    owner: Option<&FileOwner>,
    tar: impl AsyncRead + Send + 'static,
) -> Result<Moved, ClientError> {
    let data = ReaderStream::with_capacity(tar, PART);
    Ok(client.push_archive(vm, to, owner, data).await?.into())
}

/// A directory as a tar stream, packed on a thread that waits when nobody takes it, and ends when nobody will; and what
/// is not in it, told before the stream ends.
fn packed(
    directory: PathBuf,
    name: PathBuf,
    holes: bool,
) -> (impl Stream<Item = io::Result<Bytes>> + Send + 'static, oneshot::Receiver<LeftOut>) {
    let (parts, taken) = mpsc::channel(4);
    let (report, left_out) = oneshot::channel();
    let work = move || {
        // Headers and padding are 512 bytes each: unbuffered, each would cross the channel alone.
        let out = io::BufWriter::with_capacity(PART, Parts(parts.clone()));
        // Nobody takes it any more: then nobody needs to know.
        match pack::pack(&directory, &name, holes, out) {
            Ok(left_out) => drop(report.send(left_out)),
            Err(error) => drop(parts.blocking_send(Err(error))),
        }
    };
    // The stream keeps the handle only to live as long as it: the thread ends when its channel is closed.
    let started = tokio::task::spawn_blocking(work);
    let stream = futures_util::stream::unfold((taken, started), |(mut taken, started)| async move {
        taken.recv().await.map(|part| (part, (taken, started)))
    });
    (stream, left_out)
}

struct Parts(mpsc::Sender<io::Result<Bytes>>);

impl Write for Parts {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let sent = self.0.blocking_send(Ok(Bytes::copy_from_slice(data)));
        sent.map(|()| data.len()).map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
