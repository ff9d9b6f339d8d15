//! Changes below a path.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use microvm_protocol::messages::{Change, Changed, Empty, Reply, Watch};
use microvm_protocol::mux::StreamHandle;
use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use rustix::io::Errno;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::path::{absolute, failed};
use crate::core::failure::{AgentError, AgentResult};

/// Most directories one watch covers.
const MOST_DIRECTORIES: usize = 8192;

struct Watched {
    source: AsyncFd<OwnedFd>,
    /// The path that was asked for.
    root: PathBuf,
    directories: HashMap<i32, PathBuf>,
    recursive: bool,
    /// Entries of directories that came to be watched later than they were made.
    found: Vec<PathBuf>,
}

/// Moment from which a directory is watched: what was in it before is no change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Since {
    /// It is what was asked for.
    Root,
    /// It was there when the watch began.
    Beginning,
    /// It appeared later, and what is in it may have come before it was watched.
    Later,
}

/// Reports changes until the host does not want them any more.
pub(in crate::platform::linux) async fn watch(stream: &StreamHandle, request: Watch) -> AgentResult<()> {
    let path = absolute(&request.path)?;
    let source =
        inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC).map_err(failed("watch", path))?;
    let source = crate::platform::linux::descriptor::register(source, Interest::READABLE)
        .map_err(failed("watch", path))?;
    let mut watched = Watched {
        source,
        root: path.to_path_buf(),
        directories: HashMap::new(),
        recursive: request.recursive,
        found: Vec::new(),
    };
    watched.add(path, Since::Root)?;
    // From here on nothing is missed.
    stream.send_message(Reply::Done(Empty {})).await?;
    loop {
        let changes = tokio::select! {
            changes = watched.next() => changes?,
            // The host says nothing more on this stream; this ends with the stream.
            gone = async { loop { match stream.receive().await {
                Err(error) => break error,
                Ok(Some(_)) => {}
                Ok(None) => std::future::pending().await,
            } } } => return Err(gone.into()),
        };
        for (path, change) in changes {
            let path = path.as_os_str().as_bytes().to_vec();
            stream.send_message(Reply::Changed(Changed { path, change: change.into() })).await?;
        }
    }
}

impl Watched {
    /// Watches a directory, and those below it if that was asked for. One that may not be read, and so could change unseen,
    /// ends the watch.
    fn add(&mut self, path: &Path, since: Since) -> AgentResult<()> {
        if self.directories.len() >= MOST_DIRECTORIES {
            return Err(AgentError::new(
                microvm_protocol::messages::FailureKind::Exhausted,
                format!("there are more than {MOST_DIRECTORIES} directories to watch"),
            ));
        }
        let flags = WatchFlags::CREATE
            | WatchFlags::MODIFY
            | WatchFlags::ATTRIB
            | WatchFlags::DELETE
            | WatchFlags::DELETE_SELF
            | WatchFlags::MOVED_FROM
            | WatchFlags::MOVED_TO
            | WatchFlags::DONT_FOLLOW;
        // Set before the directory is listed: a file made in between is reported by the watch, by the listing, or by both.
        match inotify::add_watch(self.source.get_ref(), path, flags) {
            Ok(number) => drop(self.directories.insert(number, path.to_path_buf())),
            // It may be gone already, unless it is what was asked for.
            Err(Errno::NOENT | Errno::NOTDIR) if since != Since::Root => return Ok(()),
            Err(error) => return Err(failed("watch", path)(error)),
        }
        if self.recursive {
            let entries = match fs::read_dir(path) {
                Ok(entries) => entries,
                // A file was asked for, or the directory is gone already.
                Err(error) if matches!(Errno::from_io_error(&error), Some(Errno::NOTDIR | Errno::NOENT)) => {
                    return Ok(());
                }
                Err(error) => return Err(failed("watch", path)(error)),
            };
            for entry in entries {
                let entry = entry.map_err(failed("watch", path))?;
                if since == Since::Later {
                    self.found.push(entry.path());
                }
                if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    let below = if since == Since::Later { Since::Later } else { Since::Beginning };
                    self.add(&entry.path(), below)?;
                }
            }
        }
        Ok(())
    }

    async fn next(&mut self) -> AgentResult<Vec<(PathBuf, Change)>> {
        loop {
            let mut guard =
                self.source.readable().await.map_err(|error| AgentError::system("watch", error))?;
            let mut changes = Vec::new();
            let mut made = Vec::new();
            let mut buffer = [MaybeUninit::uninit(); 16 * 1024];
            let mut reader = inotify::Reader::new(self.source.get_ref(), &mut buffer);
            loop {
                match reader.next() {
                    Ok(event) => {
                        let flags = event.events();
                        if flags.contains(ReadFlags::QUEUE_OVERFLOW) {
                            changes.push((PathBuf::from("/"), Change::Overflow));
                            // Directories may have been made unseen.
                            if self.recursive {
                                made.push(self.root.clone());
                            }
                            continue;
                        }
                        let Some(directory) = self.directories.get(&event.wd()) else { continue };
                        let path = event.file_name().map_or_else(
                            || directory.clone(),
                            |name| directory.join(OsStr::from_bytes(name.to_bytes())),
                        );
                        if flags.contains(ReadFlags::IGNORED) {
                            self.directories.remove(&event.wd());
                            continue;
                        }
                        let Some(change) = meaning(flags) else { continue };
                        if change == Change::Created && flags.contains(ReadFlags::ISDIR) && self.recursive {
                            made.push(path.clone());
                        }
                        changes.push((path, change));
                        if reader.is_buffer_empty() {
                            break;
                        }
                    }
                    Err(Errno::AGAIN) => {
                        guard.clear_ready();
                        break;
                    }
                    Err(Errno::INTR) => {}
                    Err(error) => return Err(AgentError::system("watch", error)),
                }
            }
            for directory in made {
                self.add(&directory, Since::Later)?;
            }
            changes.extend(self.found.drain(..).map(|path| (path, Change::Created)));
            if !changes.is_empty() {
                return Ok(changes);
            }
        }
    }
}

fn meaning(flags: ReadFlags) -> Option<Change> {
    [
        (ReadFlags::CREATE, Change::Created),
        (ReadFlags::MOVED_TO, Change::Created),
        (ReadFlags::MODIFY, Change::Modified),
        (ReadFlags::DELETE, Change::Removed),
        (ReadFlags::DELETE_SELF, Change::Removed),
        (ReadFlags::MOVED_FROM, Change::Renamed),
        (ReadFlags::ATTRIB, Change::Attributes),
    ]
    .into_iter()
    .find_map(|(flag, change)| flags.contains(flag).then_some(change))
}
