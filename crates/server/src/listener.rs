//! The server's socket, its folder and its lock.

use std::fs::{DirBuilder, File, OpenOptions, Permissions, TryLockError};
use std::io::{Read as _, Seek as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};

use camino::{Utf8Path, Utf8PathBuf};
use microvm_types::ErrorKind;
use rustix::fs::{Mode, OFlags};
use tokio::net::UnixListener;

/// Bytes of path that fit a socket address (`sun_path`, unix(7)), the closing NUL left out.
const SOCKET_PATH_MAX: usize = 107;

/// Time within which the kernel frees the lock of a server that died.
const LOCK_WAIT: std::time::Duration = std::time::Duration::from_secs(2);

/// Socket of the server of a root directory.
#[must_use]
pub fn socket_path(root: &Utf8Path) -> Utf8PathBuf {
    root.join("run/api.sock")
}

/// A file whose lock says that a server runs on a root directory; servers of older versions have no other. The root
/// directory itself is locked too.
#[must_use]
pub fn lock_path(root: &Utf8Path) -> Utf8PathBuf {
    root.join("run/server.lock")
}

/// Failure to listen.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Another server has this root directory.
    #[error(
        "another server{} already runs on {root}: use it, end it, or choose another root with --root",
        .pid.as_ref().map(|pid| format!(" (process {pid})")).unwrap_or_default()
    )]
    Busy {
        /// The root directory.
        root: Utf8PathBuf,
        /// Its process number, if it wrote it down.
        pid: Option<String>,
    },
    /// The root or its folder for the socket belongs to somebody else, or is open to others.
    #[error(
        "{path} cannot be served from: {reason}; choose another root with --root, or give it to this user alone"
    )]
    Foreign {
        /// The folder.
        path: Utf8PathBuf,
        /// The fault found.
        reason: String,
    },
    /// The folder, lock or socket cannot be made.
    #[error("{action} {path} failed ({source}): check that you own it and that its disk is writable")]
    Io {
        /// The step that failed.
        action: &'static str,
        /// With which file.
        path: Utf8PathBuf,
        /// Error of the system.
        source: std::io::Error,
    },
}

impl BindError {
    /// The class of this failure.
    #[must_use]
    pub const fn kind(&self) -> ErrorKind {
        match self {
            Self::Busy { .. } => ErrorKind::Conflict,
            Self::Foreign { .. } => ErrorKind::Forbidden,
            Self::Io { .. } => ErrorKind::Internal,
        }
    }

    /// A stable code for programs.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Busy { .. } => "server_running",
            Self::Foreign { .. } => "root_foreign",
            Self::Io { .. } => "socket_failed",
        }
    }
}

/// A root directory that is ours alone, and its socket. Dropping it removes the socket and gives the lock back.
#[derive(Debug)]
pub struct BoundServer {
    pub(crate) listener: UnixListener,
    path: Utf8PathBuf,
    _locks: [File; 2],
}

impl BoundServer {
    /// Takes the lock of `root`, then listens on its socket. A socket left by a dead server is replaced: with the lock
    /// in hand nobody can be listening on it. Must be called in a runtime.
    ///
    /// # Errors
    /// [`BindError::Busy`] if another server has the root directory.
    pub fn bind(root: &Utf8Path) -> Result<Self, BindError> {
        let path = socket_path(root);
        let folder = root.join("run");
        let failed = |action, path: &Utf8Path| {
            let path = path.to_owned();
            move |source| BindError::Io { action, path, source }
        };
        // Both locks: a server of an older version knows only that of the file.
        let root_lock = take_root(root, &folder, &path)?;
        make_private(&folder)?;
        let lock = of_the_dead(&folder, &path, || take_lock(root))?;
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(failed("removing the old socket", &path)(error));
            }
            _ => {}
        }
        let listener = listen(&folder, &path).map_err(failed("listening on", &path))?;
        // The folder already keeps others out; this is the second lock on the door.
        std::fs::set_permissions(&path, Permissions::from_mode(0o600))
            .map_err(failed("closing to others the socket", &path))?;
        Ok(Self { listener, path, _locks: [root_lock, lock] })
    }

    /// The socket that it listens on.
    #[must_use]
    pub fn path(&self) -> &Utf8Path {
        &self.path
    }

    pub(crate) fn into_parts(self) -> (UnixListener, Unlink) {
        let Self { listener, path, _locks } = self;
        (listener, Unlink { path, _locks })
    }
}

/// Removes the socket while the lock is still held.
pub(crate) struct Unlink {
    path: Utf8PathBuf,
    _locks: [File; 2],
}

impl Drop for Unlink {
    fn drop(&mut self) {
        // A socket that stays behind is replaced by the next server.
        let _ = std::fs::remove_file(&self.path);
    }
}

fn listen(folder: &Utf8Path, path: &Utf8Path) -> std::io::Result<UnixListener> {
    with_short(folder, path, |short| UnixListener::bind(short))
}

/// Calls `act` with a name of the socket that fits an address.
fn with_short<T>(
    folder: &Utf8Path,
    path: &Utf8Path,
    act: impl FnOnce(&str) -> std::io::Result<T>,
) -> std::io::Result<T> {
    if path.as_str().len() <= SOCKET_PATH_MAX {
        return act(path.as_str());
    }
    // An open directory has a short name in `/proc`, however deep it lies.
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let folder = rustix::fs::open(folder.as_std_path(), flags, Mode::empty())?;
    let name = path.file_name().unwrap_or("api.sock");
    act(&format!("/proc/self/fd/{}/{name}", std::os::fd::AsRawFd::as_raw_fd(&folder)))
}

/// Takes the lock of the root itself, which nobody can take away by removing a file below it.
fn take_root(root: &Utf8Path, folder: &Utf8Path, path: &Utf8Path) -> Result<File, BindError> {
    let failed = |action| {
        let path = root.to_owned();
        move |source: std::io::Error| BindError::Io { action, path, source }
    };
    // Other users, such as those of VMMs, may pass through to what is opened to them, and list nothing.
    DirBuilder::new().recursive(true).mode(0o711).create(root).map_err(failed("making the folder"))?;
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(OFlags::DIRECTORY.bits().cast_signed())
        .open(root)
        .map_err(failed("opening the folder"))?;
    let metadata = file.metadata().map_err(failed("examining the folder"))?;
    refuse_foreign(root, &metadata)?;
    if metadata.mode() & 0o002 != 0 {
        let reason = "everybody may write to it".to_owned();
        return Err(BindError::Foreign { path: root.to_owned(), reason });
    }
    let taken = of_the_dead(folder, path, || match file.try_lock() {
        Ok(()) => Ok(()),
        Err(TryLockError::WouldBlock) => {
            Err(BindError::Busy { root: root.to_owned(), pid: holder((metadata.dev(), metadata.ino())) })
        }
        Err(TryLockError::Error(source)) => Err(failed("taking the lock of")(source)),
    });
    taken.map(|()| file)
}

/// The process that has a file (device and inode) locked. `/proc/locks` tells `1: FLOCK ADVISORY WRITE <process>
/// <device>:<inode> …`, where the device is another one than `stat`'s on some file systems: so each is asked what it has open.
fn holder(file: (u64, u64)) -> Option<String> {
    let locks = std::fs::read_to_string("/proc/locks").ok()?;
    let words = locks.lines().map(|line| line.split_ascii_whitespace().collect::<Vec<_>>());
    let of_file = |words: &Vec<&str>| {
        words.get(1) == Some(&"FLOCK")
            && words.get(5).and_then(|file| file.rsplit(':').next()) == Some(&file.1.to_string())
            && words.get(4).is_some_and(|process| has_open(process, file))
    };
    words.into_iter().find(of_file).map(|words| words[4].to_owned())
}

fn has_open(process: &str, file: (u64, u64)) -> bool {
    let entries = std::fs::read_dir(format!("/proc/{process}/fd")).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| std::fs::metadata(entry.path()).ok())
        .any(|found| (found.dev(), found.ino()) == file)
}

fn refuse_foreign(path: &Utf8Path, metadata: &std::fs::Metadata) -> Result<(), BindError> {
    let euid = rustix::process::geteuid().as_raw();
    if metadata.uid() == euid {
        return Ok(());
    }
    let reason = format!("it belongs to uid {}, and this is uid {euid}", metadata.uid());
    Err(BindError::Foreign { path: path.to_owned(), reason })
}

/// Makes the socket's folder, for its owner alone. One of somebody else's, or a link to one, is refused: whoever may write
/// there could put a socket of his own in the place of ours.
fn make_private(folder: &Utf8Path) -> Result<(), BindError> {
    let failed = |action| {
        let path = folder.to_owned();
        move |source: std::io::Error| BindError::Io { action, path, source }
    };
    match DirBuilder::new().mode(0o700).create(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
            return Err(failed("making the folder")(error));
        }
        _ => {}
    }
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW;
    let opened = OpenOptions::new().read(true).custom_flags(flags.bits().cast_signed()).open(folder);
    let opened = opened.map_err(failed("opening, without following a link, the folder"))?;
    refuse_foreign(folder, &opened.metadata().map_err(failed("examining the folder"))?)?;
    opened.set_permissions(Permissions::from_mode(0o700)).map_err(failed("closing to others the folder"))
}

/// Takes a lock; waits a moment for it if nobody listens on the socket: a killed server loses its socket a little
/// before its locks. (The kernel announces neither a lock that becomes free nor gives waiting for one a limit.)
fn of_the_dead<T>(
    folder: &Utf8Path,
    path: &Utf8Path,
    take: impl Fn() -> Result<T, BindError>,
) -> Result<T, BindError> {
    let end = std::time::Instant::now() + LOCK_WAIT;
    loop {
        match take() {
            Err(BindError::Busy { .. }) if std::time::Instant::now() < end => {
                // Somebody listens, so the holder lives: one last try, and then its answer is final.
                if with_short(folder, path, |short| std::os::unix::net::UnixStream::connect(short)).is_ok() {
                    return take();
                }
                std::thread::sleep(std::time::Duration::from_millis(5));
            }
            other => return other,
        }
    }
}

fn take_lock(root: &Utf8Path) -> Result<File, BindError> {
    let path = lock_path(root);
    let failed = |source| BindError::Io { action: "taking the lock", path: path.clone(), source };
    let mut options = OpenOptions::new();
    options.create(true).truncate(false).read(true).write(true).mode(0o600);
    // The file is emptied below: a link would have this done to whatever it leads to.
    options.custom_flags(OFlags::NOFOLLOW.bits().cast_signed());
    let mut file = options.open(&path).map_err(failed)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut pid = String::new();
            // Without the number the message is still true.
            let _ = file.take(20).read_to_string(&mut pid);
            let pid = Some(pid.trim().to_owned()).filter(|pid| !pid.is_empty());
            return Err(BindError::Busy { root: root.to_owned(), pid });
        }
        Err(TryLockError::Error(source)) => return Err(failed(source)),
    }
    file.set_len(0).and_then(|()| file.rewind()).map_err(failed)?;
    writeln!(file, "{}", std::process::id()).map_err(failed)?;
    Ok(file)
}
