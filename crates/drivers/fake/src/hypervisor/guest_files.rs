//! Files of a fake guest, single and as archives.

use std::pin::Pin;
use std::time::SystemTime;

use async_trait::async_trait;
use bytes::Bytes;
use futures::{Stream, StreamExt, stream};
use microvm_ports::content::{self, Content, ContentStream};
use microvm_ports::guest::{ByteStream, GuestArchives, GuestFiles, GuestPath};
use microvm_ports::{GuestError, Holes, PulledArchive, PushedArchive};
use microvm_types::ErrorKind;
use microvm_types::files::{FileChange, FileList, FileOwner, FileStat, LeftOut, WatchEvent, WriteOptions};
use sha2::{Digest, Sha256};
use tokio::sync::broadcast;

use crate::guest::system::{GuestSystem, wait_closed};
use crate::guest::tree::{Body, Modified, Node, node, refused};
use crate::guest::{archive, tree};
use crate::hypervisor::guest::FakeGuest;
use crate::script::Operation;

/// Bytes of a file or archive per chunk of a stream.
const CHUNK: usize = 64 << 10;

/// Most bytes of one transfer: all of it is held in memory here.
const MAX_TRANSFER: usize = 512 << 20;

/// An archive from which nothing was left out.
fn whole(packed: Vec<u8>) -> PulledArchive {
    with_report(packed, LeftOut::default())
}

fn with_report(packed: Vec<u8>, missing: LeftOut) -> PulledArchive {
    let (report, left_out) = tokio::sync::oneshot::channel();
    // The other end is in the answer.
    let _ = report.send(missing);
    PulledArchive { data: chunks(packed), left_out }
}

fn chunks(data: Vec<u8>) -> ByteStream {
    let data = Bytes::from(data);
    let pieces: Vec<Bytes> =
        (0..data.len()).step_by(CHUNK).map(|at| data.slice(at..data.len().min(at + CHUNK))).collect();
    Box::pin(stream::iter(pieces.into_iter().map(Ok)))
}

/// Content as a file system tells it: whole chunks of zeros are holes.
fn with_holes(data: &[u8]) -> ContentStream {
    let pieces: Vec<Content> = data
        .chunks(CHUNK)
        .map(|chunk| match chunk.iter().all(|byte| *byte == 0) {
            true => Content::Hole(chunk.len() as u64),
            false => Content::Data(Bytes::copy_from_slice(chunk)),
        })
        .collect();
    Box::pin(stream::iter(pieces.into_iter().map(Ok)))
}

fn hex(hash: Sha256) -> String {
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

async fn gather(mut data: ByteStream) -> Result<Vec<u8>, GuestError> {
    let mut all = Vec::new();
    while let Some(piece) = data.next().await {
        let piece = piece.map_err(GuestError::of_source)?;
        if all.len() + piece.len() > MAX_TRANSFER {
            return Err(refused(ErrorKind::Exhausted, "no space left on the fake guest"));
        }
        all.extend_from_slice(&piece);
    }
    Ok(all)
}

fn now() -> Modified {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    (i64::try_from(since.as_secs()).unwrap_or(i64::MAX), since.subsec_nanos())
}

fn check_place(system: &GuestSystem, path: &GuestPath, create_parents: bool) -> Result<(), GuestError> {
    let files = system.files();
    let parts = files.resolve(path, true)?;
    if matches!(files.get(&parts), Ok(Node { body: Body::Directory(_), .. })) {
        return Err(refused(ErrorKind::Conflict, format!("{}: it is a directory", tree::show(path))));
    }
    if !create_parents {
        files.get(&parts[..parts.len().saturating_sub(1)])?;
    }
    Ok(())
}

#[async_trait]
impl GuestFiles for FakeGuest {
    async fn read_file(
        &self,
        path: &GuestPath,
        offset: u64,
        length: Option<u64>,
    ) -> Result<(FileStat, ContentStream), GuestError> {
        let files = self.system().await?.files();
        let (stat, data) = files.read(path)?;
        let start = usize::try_from(offset).unwrap_or(usize::MAX).min(data.len());
        let length = length.map_or(usize::MAX, |length| usize::try_from(length).unwrap_or(usize::MAX));
        let data = &data[start..start.saturating_add(length).min(data.len())];
        Ok((stat, with_holes(data)))
    }

    async fn write_file(
        &self,
        path: &GuestPath,
        options: &WriteOptions,
        data: ContentStream,
    ) -> Result<u64, GuestError> {
        let system = self.system().await?;
        // Found out before anything is transferred, as a real agent does.
        check_place(system, path, options.create_parents)?;
        let content = gather(content::expanded(data)).await?;
        let bytes = content.len() as u64;
        let owner = system.owner(options.owner.as_ref())?;
        {
            let mut files = system.files();
            let parts = files.resolve(path, true)?;
            if options.create_parents {
                files.make_all(&parts[..parts.len().saturating_sub(1)], 0o755, owner)?;
            }
            let old = files.get(&parts).ok().map(|old| (old.mode, old.owner));
            let named = owner.filter(|_| options.owner != Some(FileOwner::Default));
            let new_owner = named.or(old.map(|(_, owner)| owner)).or(owner).unwrap_or((0, 0));
            let old_mode = old.map_or(0o644, |(mode, _)| mode);
            files.put(
                &parts,
                Node {
                    owner: new_owner,
                    modified: options.modified.map_or_else(now, |time| (time.seconds(), time.nanoseconds())),
                    ..node(Body::File(content), options.mode.unwrap_or(old_mode))
                },
            )?;
        }
        system.changed(path, FileChange::Modified);
        Ok(bytes)
    }

    async fn stat(&self, path: &GuestPath) -> Result<FileStat, GuestError> {
        self.system().await?.files().stat(path)
    }

    async fn list(&self, path: &GuestPath, depth: u32) -> Result<FileList, GuestError> {
        let entries = self.system().await?.files().list(path, depth)?;
        Ok(FileList { entries, ..FileList::default() })
    }

    async fn make_directory(
        &self,
        path: &GuestPath,
        mode: u32,
        parents: bool,
        owner: Option<&FileOwner>,
    ) -> Result<(), GuestError> {
        let system = self.system().await?;
        let owner = system.owner(owner)?;
        system.files().make_directory(path, mode, parents, owner)?;
        system.changed(path, FileChange::Created);
        Ok(())
    }

    async fn rename(&self, from: &GuestPath, to: &GuestPath) -> Result<(), GuestError> {
        let system = self.system().await?;
        system.files().rename(from, to)?;
        system.changed(from, FileChange::Renamed);
        system.changed(to, FileChange::Created);
        Ok(())
    }

    async fn remove(&self, path: &GuestPath, recursive: bool) -> Result<(), GuestError> {
        let system = self.system().await?;
        system.files().remove(path, recursive)?;
        system.changed(path, FileChange::Removed);
        Ok(())
    }

    async fn watch(
        &self,
        path: &GuestPath,
        recursive: bool,
    ) -> Result<Pin<Box<dyn Stream<Item = Result<WatchEvent, GuestError>> + Send>>, GuestError> {
        let system = self.system().await?;
        system.files().stat(path)?;
        let base = tree::show(path).trim_end_matches('/').to_owned();
        let state = Some((system.changes.subscribe(), self.channel.subscribe(), base));
        Ok(Box::pin(stream::unfold(state, move |state| async move {
            let (mut changes, mut closed, base) = state?;
            loop {
                let change = tokio::select! {
                    change = changes.recv() => change,
                    reason = wait_closed(&mut closed) => return Some((Err(GuestError::Closed(reason)), None)),
                };
                let event = match change {
                    Ok(event) => event,
                    Err(broadcast::error::RecvError::Lagged(_)) => {
                        WatchEvent { path: base.clone(), path_bytes: None, change: FileChange::Overflow }
                    }
                    Err(broadcast::error::RecvError::Closed) => return None,
                };
                let inside = match event.path.strip_prefix(&base) {
                    Some("") => true,
                    Some(rest) => rest.starts_with('/') && (recursive || !rest[1..].contains('/')),
                    None => false,
                };
                if inside {
                    return Some((Ok(event), Some((changes, closed, base))));
                }
            }
        })))
    }
}

#[async_trait]
impl GuestArchives for FakeGuest {
    async fn push_archive(
        &self,
        path: &GuestPath,
        owner: Option<&FileOwner>,
        data: ByteStream,
    ) -> Result<PushedArchive, GuestError> {
        let system = self.system().await?;
        let owner = system.owner(owner)?;
        let content = gather(data).await?;
        let left_out = archive::unpack(&mut system.files(), path, owner, &content)?;
        system.changed(path, FileChange::Modified);
        Ok(PushedArchive { bytes: content.len() as u64, left_out })
    }

    async fn pull_archive(
        &self,
        path: &GuestPath,
        exclude: &[Vec<u8>],
        // Its files have none, as far as it tells.
        _holes: Holes,
    ) -> Result<PulledArchive, GuestError> {
        Ok(whole(archive::pack(&self.system().await?.files(), path, exclude)?))
    }

    async fn pull_root(&self, path: &GuestPath) -> Result<PulledArchive, GuestError> {
        let verdict = self.ask(Operation::PullRoot).await?;
        let packed = archive::pack_root(&self.system().await?.files(), path)?;
        verdict.finish().await;
        Ok(whole(packed))
    }

    async fn pull_layer(&self) -> Result<PulledArchive, GuestError> {
        let verdict = self.ask(Operation::PullLayer).await?;
        let (packed, left_out) = archive::pack_layer(&self.system().await?.files())?;
        verdict.finish().await;
        Ok(with_report(packed, left_out))
    }

    async fn hash_file(&self, path: &GuestPath) -> Result<String, GuestError> {
        let files = self.system().await?.files();
        Ok(hex(Sha256::new_with_prefix(files.read(path)?.1)))
    }
}
