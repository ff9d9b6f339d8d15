//! Into a guest.

use std::ffi::OsStr;
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use futures_util::{Stream, TryStreamExt as _};
use microvm_client::{Client, ClientError, WriteFile};
use microvm_types::files::{FileKind, FileOwner, FileTime, LeftOut, TransferSummary};
use microvm_types::{ErrorKind, VmRef};
use tokio::sync::{mpsc, oneshot};
use tokio_util::io::ReaderStream;

use crate::error::CliError;
use crate::transfer::extents::ExtentReader;
use crate::transfer::place::{base_name, join, parent};
use crate::transfer::sum::Sum;
use crate::transfer::{Moved, extents, pack};

/// Bytes that are read and sent at once.
const PART: usize = 128 * 1024;

impl From<TransferSummary> for Moved {
    fn from(summary: TransferSummary) -> Self {
        let TransferSummary { bytes, sha256, left_out } = summary;
        Self { bytes, sha256: Some(sha256), left_out, left_out_is_complete: true }
    }
}

/// Copies a file or directory to a path of a guest, or into it if it is a directory, for `owner`.
pub(crate) async fn push(
    client: &Client,
    vm: &VmRef,
    from: &Path,
    to: &[u8],
    owner: &FileOwner,
) -> Result<Moved, CliError> {
    let metadata = std::fs::metadata(from).map_err(|error| CliError::file("reading", from, &error))?;
    let mut target = to.to_vec();
    if is_directory(client, vm, to).await? {
        // `cp . vm:/x` means the content, as there is no name to give it.
        let name = base_name(from.as_os_str().as_bytes());
        if !name.is_empty() {
            target = join(to, name);
        }
    } else if to.ends_with(b"/") && !metadata.is_dir() {
        let detail = format!("{} is not a directory in the VM: make it first", String::from_utf8_lossy(to));
        return Err(CliError::new(ErrorKind::NotFound, "directory_not_found", detail));
    }
    if metadata.is_dir() {
        let (folder, name) = (parent(&target), base_name(&target));
        if name.is_empty() || kind(client, vm, &target).await?.is_some() {
            return push_directory(client, vm, from, &target, owner).await;
        }
        // A new one is an entry itself: it is to have its mode and time.
        client.make_directory(vm, folder, Some(owner)).await?;
        return push_packed(client, vm, from, (name, folder), owner).await;
    }
    let file = std::fs::File::open(from).map_err(|error| CliError::file("opening", from, &error))?;
    let options = WriteFile {
        mode: Some(metadata.mode() & 0o777),
        owner: Some(owner.clone()),
        parents: true,
        modified: modified(&metadata),
    };
    // `st_blocks` counts 512 bytes (stat(2)).
    if metadata.is_file() && metadata.blocks().saturating_mul(512) < metadata.len() {
        let file = file.try_clone().map_err(|error| CliError::file("opening", from, &error))?;
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
) -> Result<Option<Moved>, CliError> {
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
        Err(ClientError::Problem(problem)) if problem.code == "route_not_found" => Ok(None),
        Err(error) => Err(error.into()),
    }
}

async fn is_directory(client: &Client, vm: &VmRef, path: &[u8]) -> Result<bool, CliError> {
    match kind(client, vm, path).await? {
        Some(FileKind::Directory) => Ok(true),
        // A link to a directory counts as that directory: a slash at the end makes the guest look through it.
        Some(FileKind::Symlink) => Ok(kind(client, vm, &join(path, b"")).await? == Some(FileKind::Directory)),
        _ => Ok(false),
    }
}

/// What is at a path of a guest; `None` where nothing is, and for a link to a file that is named like a directory.
async fn kind(client: &Client, vm: &VmRef, path: &[u8]) -> Result<Option<FileKind>, CliError> {
    match client.stat(vm, path).await {
        Ok(stat) => Ok(Some(stat.kind)),
        Err(ClientError::Problem(problem))
            if problem.kind == ErrorKind::NotFound && problem.code != "vm_not_found" =>
        {
            Ok(None)
        }
        // ENOTDIR of the guest.
        Err(ClientError::Problem(problem)) if problem.kind == ErrorKind::Invalid && path.ends_with(b"/") => {
            Ok(None)
        }
        Err(error) => Err(error.into()),
    }
}

/// Copies what is in a directory into a directory of a guest, which is made if it is missing.
pub(crate) async fn push_directory(
    client: &Client,
    vm: &VmRef,
    from: &Path,
    to: &[u8],
    owner: &FileOwner,
) -> Result<Moved, CliError> {
    if !from.is_dir() {
        let detail = format!("{} is not a directory: check the path", from.display());
        return Err(CliError::invalid("not_a_directory", detail));
    }
    client.make_directory(vm, to, Some(owner)).await?;
    push_packed(client, vm, from, (b"", to), owner).await
}

/// When a file was last changed; what is no file, such as a pipe, is as new as its copy.
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
) -> Result<Moved, CliError> {
    // An agent that says what files take on its disk knows maps of holes, too.
    let holes = client.stat(vm, b"/").await?.allocated.is_some();
    let (data, left_out) = packed(from.to_owned(), OsStr::from_bytes(name).into(), holes);
    let mut moved = Moved::from(client.push_archive(vm, folder, Some(owner), data).await?);
    // All was sent, so it was told before.
    moved.left_out.merge(left_out.await.unwrap_or_default());
    Ok(moved)
}

/// Unpacks a tar stream from standard input in a guest, for `owner`, else for those whom it names.
pub(crate) async fn push_stream(
    client: &Client,
    vm: &VmRef,
    to: &[u8],
    owner: Option<&FileOwner>,
) -> Result<Moved, CliError> {
    let data = ReaderStream::with_capacity(tokio::io::stdin(), PART);
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
        let out = io::BufWriter::with_capacity(PART, Parts(parts.clone()));
        // Nobody takes it any more: then nobody needs to know.
        match pack::pack(&directory, &name, holes, out) {
            Ok(left_out) => drop(report.send(left_out)),
            Err(error) => drop(parts.blocking_send(Err(error))),
        }
    };
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
