//! Files.

use std::pin::Pin;
use std::sync::Arc;

use futures::Stream;
use microvm_ports::content::{self, ContentStream};
use microvm_ports::guest::ByteStream;
use microvm_ports::{GuestError, Holes, PulledArchive, PushedArchive};
use microvm_protocol::messages::{
    self, Change, EntryKind, List, MAX_LIST_ENTRIES, Operation, Path, PullArchive, PushArchive, ReadFile,
    Reply, Stat, Watch, WriteFile,
};
use microvm_protocol::mux::Incoming;
use microvm_types::files::{FileChange, FileKind, FileList, FileOwner, FileStat, WatchEvent, WriteOptions};

use crate::channel::Channel;
use crate::list::Reading;
use crate::{sanitize, transfer};

pub(crate) async fn read(
    channel: &Arc<Channel>,
    path: &[u8],
    offset: u64,
    length: Option<u64>,
) -> Result<(FileStat, ContentStream), GuestError> {
    let request = ReadFile { path: path.to_vec(), offset, length };
    let stream = channel.open(Operation::ReadFile(request))?;
    stream.end();
    let Reply::Stat(stat) = channel.reply(&stream).await? else {
        return Err(channel.broken("the guest does not say what file it reads"));
    };
    Ok((file_stat(stat), transfer::pull(Arc::clone(channel), stream, length)))
}

pub(crate) async fn write(
    channel: &Channel,
    path: &[u8],
    options: &WriteOptions,
    owner: Option<String>,
    data: ContentStream,
) -> Result<u64, GuestError> {
    let numbers = options.owner.as_ref().and_then(FileOwner::numbers);
    let request = WriteFile {
        path: path.to_vec(),
        mode: options.mode,
        uid: numbers.map(|(uid, _)| uid),
        gid: numbers.map(|(_, gid)| gid),
        create_parents: options.create_parents,
        modified: options
            .modified
            .map(|time| messages::FileTime { seconds: time.seconds(), nanoseconds: time.nanoseconds() }),
        owner,
    };
    let stream = channel.open(Operation::WriteFile(request))?;
    Ok(transfer::push(channel, &stream, data).await?.bytes)
}

pub(crate) async fn stat(channel: &Channel, path: &[u8]) -> Result<FileStat, GuestError> {
    match channel.unary(Operation::Stat(Path { path: path.to_vec() })).await? {
        Reply::Stat(stat) => Ok(file_stat(stat)),
        _ => Err(channel.broken("the guest does not say what is at a path")),
    }
}

pub(crate) async fn list(channel: &Channel, path: &[u8], depth: u32) -> Result<FileList, GuestError> {
    let request = List { path: path.to_vec(), depth: depth.max(1) };
    let reading = Reading {
        most: MAX_LIST_ENTRIES,
        open: |reply| if let Reply::Stats(some) = reply { Some(some.entries) } else { None },
        keep: |stat| Some(file_stat(stat)),
        behind: |stat: &FileStat| {
            stat.path.capacity()
                + stat.path_bytes.as_ref().map_or(0, Vec::capacity)
                + stat.target.as_ref().map_or(0, String::capacity)
        },
    };
    let (mut truncated, mut unreadable, mut first_unreadable) = (false, 0, None);
    let see = |reply: &Reply| {
        if let Reply::Stats(some) = reply {
            truncated |= some.truncated;
            unreadable = some.unreadable.max(unreadable);
            first_unreadable = some.first_unreadable.as_deref().map(|path| sanitize::path(path).0);
        }
    };
    let entries = channel.list_seeing(Operation::List(request), reading, see).await?;
    Ok(FileList { entries, truncated, unreadable, first_unreadable })
}

/// Reports of changes, or what ended them.
pub(crate) type Changes = Pin<Box<dyn Stream<Item = Result<WatchEvent, GuestError>> + Send>>;

pub(crate) async fn watch(
    channel: &Arc<Channel>,
    path: &[u8],
    recursive: bool,
) -> Result<Changes, GuestError> {
    let stream = channel.open(Operation::Watch(Watch { path: path.to_vec(), recursive }))?;
    let Reply::Done(_) = channel.reply(&stream).await? else {
        return Err(channel.broken("the guest does not confirm a watch"));
    };
    let state = Some((Arc::clone(channel), stream));
    Ok(Box::pin(futures::stream::unfold(state, |state| async move {
        let (channel, stream) = state?;
        loop {
            let error = match stream.receive().await {
                Ok(None) => return None,
                Ok(Some(Incoming::Message(Some(Reply::Changed(changed))))) => {
                    let (path, path_bytes) = sanitize::path(&changed.path);
                    let event = WatchEvent { path, path_bytes, change: change(changed.change()) };
                    return Some((Ok(event), Some((channel, stream))));
                }
                Ok(Some(Incoming::Message(None))) => continue,
                Ok(Some(_)) => channel.broken("the guest sends something else than a change"),
                Err(error) => channel.stream_failed(error),
            };
            return Some((Err(error), None));
        }
    })))
}

pub(crate) async fn push_archive(
    channel: &Channel,
    path: &[u8],
    owner: Option<String>,
    data: ByteStream,
) -> Result<PushedArchive, GuestError> {
    let stream = channel.open(Operation::PushArchive(PushArchive { path: path.to_vec(), owner }))?;
    let written = transfer::push(channel, &stream, content::of_bytes(data)).await?;
    let left_out = written.left_out.map(transfer::left_out).unwrap_or_default();
    Ok(PushedArchive { bytes: written.bytes, left_out })
}

/// The first bytes are waited for, so that a path that does not exist is an error of the call.
pub(crate) async fn pull_archive(
    channel: &Arc<Channel>,
    path: &[u8],
    exclude: &[Vec<u8>],
    holes: Holes,
) -> Result<PulledArchive, GuestError> {
    let request = PullArchive {
        path: path.to_vec(),
        exclude: exclude.to_vec(),
        report: true,
        holes: holes == Holes::Map,
    };
    packed(channel, Operation::PullArchive(request)).await
}

/// Packs the root of an image: its file system without anything mounted over it.
pub(crate) async fn pull_root(channel: &Arc<Channel>, path: &[u8]) -> Result<PulledArchive, GuestError> {
    packed(channel, Operation::PullRoot(Path { path: path.to_vec() })).await
}

/// Packs the changes of the root against the image.
pub(crate) async fn pull_layer(channel: &Arc<Channel>) -> Result<PulledArchive, GuestError> {
    packed(channel, Operation::PullLayer(microvm_protocol::messages::Empty {})).await
}

async fn packed(channel: &Arc<Channel>, operation: Operation) -> Result<PulledArchive, GuestError> {
    use futures::StreamExt as _;
    let stream = channel.open(operation)?;
    stream.end();
    let (mut data, left_out) = transfer::pull_archive(Arc::clone(channel), stream);
    let first = data.next().await.transpose()?;
    Ok(PulledArchive { data: Box::pin(futures::stream::iter(first.map(Ok)).chain(data)), left_out })
}

pub(crate) async fn hash(channel: &Channel, path: &[u8]) -> Result<String, GuestError> {
    match channel.unary(Operation::HashFile(Path { path: path.to_vec() })).await? {
        Reply::Hash(hash) if hash.sha256.len() == 32 => Ok(transfer::hex(&hash.sha256)),
        _ => Err(channel.broken("the guest does not answer with a hash")),
    }
}

fn file_stat(stat: Stat) -> FileStat {
    let kind = match stat.kind() {
        EntryKind::File => FileKind::File,
        EntryKind::Directory => FileKind::Directory,
        EntryKind::Symlink => FileKind::Symlink,
        EntryKind::Other => FileKind::Other,
    };
    let (path, path_bytes) = sanitize::path(&stat.path);
    let (target, target_bytes) = stat.target.map(|target| sanitize::path(&target)).unzip();
    FileStat {
        path,
        path_bytes,
        kind,
        size: stat.size,
        mode: stat.mode & 0o7777,
        uid: stat.uid,
        gid: stat.gid,
        modified_ms: stat.modified_ms,
        modified_nanoseconds: stat.modified.map(|time| time.nanoseconds.min(999_999_999)),
        allocated: stat.allocated,
        target,
        target_bytes: target_bytes.flatten(),
    }
}

const fn change(change: Change) -> FileChange {
    match change {
        Change::Created => FileChange::Created,
        Change::Modified => FileChange::Modified,
        Change::Attributes => FileChange::Attributes,
        Change::Removed => FileChange::Removed,
        Change::Renamed => FileChange::Renamed,
        Change::Overflow => FileChange::Overflow,
    }
}
