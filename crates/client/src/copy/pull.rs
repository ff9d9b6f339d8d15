//! Copies out of a guest.

use std::ffi::OsStr;
use std::fs;
use std::io::{self, Read};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use crate::{Client, ContentDownload, Download};
use bytes::{Buf as _, Bytes};
use microvm_types::extents::Content;
use microvm_types::files::{FileKind, LeftOut};
use microvm_types::{ErrorKind, PathStyle, VmRef};
use rustix::fs::{Mode, OFlags};
use tokio::io::{AsyncWrite, AsyncWriteExt as _};
use tokio::sync::mpsc;

use crate::copy::budget::Budget;
use crate::copy::sparse::SparseWriter;
use crate::copy::sum::Sum;
use crate::copy::{Moved, Rules, permissions, temporary, unpack};
use crate::error::{ClientError, LOCAL_FILE};

/// Copies a file or directory of a guest (its path in the style of the guest) to a path of this host, or into it if it is
/// a directory.
///
/// # Errors
/// If something cannot be read there or written here, or the budget is used up.
pub async fn pull(
    client: &Client,
    vm: &VmRef,
    from: &[u8],
    style: PathStyle,
    to: &Path,
    rules: Rules,
) -> Result<Moved, ClientError> {
    let stat = client.stat(vm, from).await?;
    let name = style.base_name(from);
    // Through links, as `cp` does: a link that was typed leads to where the copy is wanted.
    let exists = to.is_dir();
    if name.is_empty() {
        let detail =
            "the path in the VM has no name of its own (`/`, `.` or `..`): name a file or directory below it";
        return Err(ClientError::invalid("path_invalid", detail));
    }
    if !exists && stat.kind != FileKind::Directory && to.as_os_str().as_bytes().ends_with(b"/") {
        let detail =
            format!("there is no directory {} here: make it first, or leave out the slash", to.display());
        return Err(ClientError::refused(ErrorKind::NotFound, LOCAL_FILE, detail));
    }
    let target = if exists { to.join(OsStr::from_bytes(name)) } else { to.to_owned() };
    match stat.kind {
        // A path that was typed is followed like everywhere; this name was not, and an earlier copy may have made the link.
        FileKind::Directory if exists && target.is_symlink() => Err(ClientError::refused(
            ErrorKind::Conflict,
            "target_is_link",
            format!(
                "{} is a symbolic link, and nothing is written through it: remove it, or name the directory it leads to",
                target.display()
            ),
        )),
        FileKind::Directory => {
            pull_tree(client, vm, (from, name), &target, stat.allocated.is_some(), rules).await
        }
        FileKind::Other => Err(ClientError::refused(
            ErrorKind::Unsupported,
            "not_copyable",
            format!("{} is a device, FIFO or socket: only files and directories are copied", stat.path),
        )),
        FileKind::File | FileKind::Symlink => {
            // An agent that does not say what a file takes belongs to a time when holes were sent as zeros.
            let holes = stat.allocated.is_some_and(|allocated| {
                // What a link takes says nothing of the file it leads to.
                allocated < stat.size || stat.kind == FileKind::Symlink
            });
            pull_file(client, vm, from, &target, rules.budget, holes).await
        }
    }
}

/// Copies the content of a directory of a guest into a directory of this host, which is made if it is missing.
///
/// # Errors
/// As for [`pull`].
pub async fn pull_directory(
    client: &Client,
    vm: &VmRef,
    from: &[u8],
    style: PathStyle,
    to: &Path,
    rules: Rules,
) -> Result<Moved, ClientError> {
    let holes = client.stat(vm, from).await?.allocated.is_some();
    pull_tree(client, vm, (from, style.base_name(from)), to, holes, rules).await
}

/// Writes a file or directory of a guest to `out`, as a tar stream.
///
/// # Errors
/// As for [`pull`]; [`ClientError::Output`] if `out` cannot be written to.
pub async fn pull_stream(
    client: &Client,
    vm: &VmRef,
    from: &[u8],
    mut budget: Budget,
    out: &mut (impl AsyncWrite + Unpin),
) -> Result<Moved, ClientError> {
    // Whatever reads it may not know of sparse entries.
    let mut data = client.pull_archive(vm, from, false).await?;
    let mut count = Sum::default();
    while let Some(part) = data.next().await? {
        count.add(&part);
        budget.charge(part.len() as u64)?;
        out.write_all(&part).await.map_err(ClientError::Output)?;
    }
    out.flush().await.map_err(ClientError::Output)?;
    Ok(count.moved(data.left_out(), LeftOut::default()))
}

/// A file or directory that is not complete yet; removed when dropped, unless it took its place.
struct Unfinished {
    folder: PathBuf,
    name: Option<String>,
}

/// An unfinished file or directory: the name and what was opened.
type Make<T> = fn(BorrowedFd<'_>) -> io::Result<(String, T)>;

impl Unfinished {
    /// Makes something beside a target, and removes what killed clients left there.
    fn beside<T>(target: &Path, make: Make<T>) -> Result<(Self, T), ClientError> {
        let folder =
            target.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let failed = |error: io::Error| ClientError::file("making", target, &error);
        if target.file_name().is_some_and(|name| temporary::is_temporary(name.as_bytes())) {
            return Err(ClientError::invalid(
                "copy_invalid",
                format!(
                    "the name of {} is one of copies that are not complete: choose another one",
                    target.display()
                ),
            ));
        }
        // Not for reading: a directory that may be written to may be closed to that.
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let open = rustix::fs::open(folder, flags, Mode::empty()).map_err(|error| failed(error.into()))?;
        temporary::sweep(&open, folder);
        let (name, made) = make(open.as_fd()).map_err(failed)?;
        Ok((Self { folder: folder.to_owned(), name: Some(name) }, made))
    }

    fn path(&self) -> PathBuf {
        self.folder.join(self.name.as_deref().unwrap_or_default())
    }

    fn take_place(mut self, target: &Path) -> Result<(), ClientError> {
        let failed = |error: io::Error| ClientError::file("making", target, &error);
        // In the same folder, so this replaces the target at once: nobody sees half a copy.
        fs::rename(self.path(), target).map_err(failed)?;
        self.name = None;
        Ok(())
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        if self.name.is_some() {
            // What it is decides which of the two removes it; neither follows links.
            let _ = fs::remove_file(self.path()).or_else(|_| fs::remove_dir_all(self.path()));
        }
    }
}

/// A file on its way, with or without word of its holes.
enum Arriving {
    Bytes(Download),
    Content(ContentDownload),
}

impl Arriving {
    async fn next(&mut self) -> Result<Option<Content>, ClientError> {
        match self {
            Self::Bytes(data) => Ok(data.next().await?.map(Content::Data)),
            Self::Content(data) => data.next().await,
        }
    }
}

async fn pull_file(
    client: &Client,
    vm: &VmRef,
    from: &[u8],
    target: &Path,
    mut budget: Budget,
    holes: bool,
) -> Result<Moved, ClientError> {
    let (stat, mut data) = if holes {
        let (stat, data) = client.read_content(vm, from).await?;
        (stat, Arriving::Content(data))
    } else {
        let (stat, data) = client.read_file(vm, from).await?;
        (stat, Arriving::Bytes(data))
    };
    // After the first answer of the guest: a path that is not there leaves no trace here.
    let (unfinished, file) = Unfinished::beside(target, temporary::file)?;
    let failed = |error: io::Error| ClientError::file("writing", target, &error);
    let mut writer = SparseWriter::new(file);
    let mut count = Sum::default();
    while let Some(piece) = data.next().await? {
        count.add_content(&piece);
        match piece {
            Content::Data(part) => budget.charge(writer.write(&part).map_err(failed)?)?,
            Content::Hole(length) => writer.hole(length).map_err(failed)?,
        }
    }
    let file = writer.finish().map_err(failed)?;
    let attributes =
        unpack::Attributes { mode: Some(permissions::of(stat.mode)), modified: Some(stat.modified()) };
    // Before it takes its place: with its name it has its permissions.
    attributes.give(file.as_fd()).map_err(failed)?;
    unfinished.take_place(target)?;
    Ok(count.moved(Some(&LeftOut::default()), LeftOut::default()))
}

async fn pull_tree(
    client: &Client,
    vm: &VmRef,
    (from, name): (&[u8], &[u8]),
    target: &Path,
    holes: bool,
    rules: Rules,
) -> Result<Moved, ClientError> {
    let mut data = client.pull_archive(vm, from, holes).await?;
    let prefix = name.to_vec();
    if target.is_dir() {
        return receive(&mut data, target.to_owned(), prefix, false, rules).await;
    }
    // A new directory takes its place complete and verified, or not at all.
    let (unfinished, _held) = Unfinished::beside(target, temporary::directory)?;
    let moved = receive(&mut data, unfinished.path(), prefix, true, rules).await?;
    unfinished.take_place(target)?;
    Ok(moved)
}

/// Unpacks on a thread of its own while the parts arrive here; the end counts only if its SHA-256 was right.
async fn receive(
    data: &mut Download,
    target: PathBuf,
    prefix: Vec<u8>,
    made: bool,
    mut rules: Rules,
) -> Result<Moved, ClientError> {
    let (parts, arriving) = mpsc::channel(4);
    let unpacking = tokio::task::spawn_blocking(move || {
        let mut reader = Parts { parts: arriving, part: Bytes::new() };
        let outcome = unpack::unpack(&mut reader, &target, &prefix, made, &mut rules);
        if outcome.is_ok() {
            // Padding may follow the end of the archive; it still has to be counted.
            reader.drain();
        }
        outcome
    });
    let mut count = Sum::default();
    let received = loop {
        match data.next().await {
            Ok(Some(part)) => {
                count.add(&part);
                // The unpacker has ended early; its outcome below says why.
                if parts.send(Ok(part)).await.is_err() {
                    break Ok(());
                }
            }
            Ok(None) => break Ok(()),
            Err(error) => {
                // The unpacker must not take a broken connection for the end.
                let _ = parts.send(Err(io::Error::other(error.to_string()))).await;
                break Err(error);
            }
        }
    };
    drop(parts);
    // Waited for also when the transfer failed: nothing is written any more once this returns.
    let unpacked = unpacking.await;
    // First: an unpacker that was cut off reports the cut, not its cause.
    received?;
    let failed = |error: tokio::task::JoinError| {
        ClientError::refused(ErrorKind::Internal, "unpack_failed", error.to_string())
    };
    let left_out = unpacked.map_err(failed)??;
    Ok(count.moved(data.left_out(), left_out))
}

struct Parts {
    parts: mpsc::Receiver<io::Result<Bytes>>,
    part: Bytes,
}

impl Parts {
    fn drain(&mut self) {
        while let Some(Ok(_)) = self.parts.blocking_recv() {}
    }
}

impl Read for Parts {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.part.is_empty() {
            match self.parts.blocking_recv() {
                Some(part) => self.part = part?,
                None => return Ok(0),
            }
        }
        let length = buffer.len().min(self.part.len());
        self.part.copy_to_slice(&mut buffer[..length]);
        Ok(length)
    }
}
