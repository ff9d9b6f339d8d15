//! Directories for work in progress, on the same file system as what they become.
//!
//! Each holds a locked file while its maker lives; the lock goes with the process however it ends. So leftovers are
//! known by a lock that can be taken, and living work is never touched, whoever does it.

use std::fs::{self, File, OpenOptions};
use std::sync::atomic::{AtomicU64, Ordering};

use camino::{Utf8Path, Utf8PathBuf};
use microvm_ports::StorageError;
use rustix::fs::{FlockOperation, flock};

use super::error::{errno, io_error};
use super::files::{disk_usage, make_directory, names_in, remove_all};

const LOCK: &str = ".lock";
/// Held shared while a directory is made and locked, exclusively while leftovers are looked for.
const GATE: &str = ".gate";

/// A directory that is removed when dropped.
pub struct Workspace {
    path: Utf8PathBuf,
    _lock: File,
}

fn open_lock(path: &Utf8Path) -> Result<File, StorageError> {
    OpenOptions::new().create(true).truncate(false).write(true).open(path).map_err(io_error("opening", path))
}

fn gate(directory: &Utf8Path, operation: FlockOperation) -> Result<File, StorageError> {
    let path = directory.join(GATE);
    let file = open_lock(&path)?;
    flock(&file, operation).map_err(errno("locking", &path))?;
    Ok(file)
}

impl Workspace {
    /// Makes one in the store's directory for work in progress.
    pub fn create(directory: &Utf8Path) -> Result<Self, StorageError> {
        // Unique within this process; the process id makes it unique among those of today, `create_dir` among all.
        static COUNTER: AtomicU64 = AtomicU64::new(0);
        let _gate = gate(directory, FlockOperation::LockShared)?;
        loop {
            let number = COUNTER.fetch_add(1, Ordering::Relaxed);
            let path = directory.join(format!("{}-{number}", std::process::id()));
            match fs::create_dir(&path) {
                Ok(()) => {}
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => continue,
                Err(error) => return Err(io_error("creating", &path)(error)),
            }
            make_directory(&path, 0o700)?;
            let lock_path = path.join(LOCK);
            let lock = open_lock(&lock_path)?;
            flock(&lock, FlockOperation::NonBlockingLockExclusive).map_err(errno("locking", &lock_path))?;
            return Ok(Self { path, _lock: lock });
        }
    }

    /// Where it is.
    pub fn path(&self) -> &Utf8Path {
        &self.path
    }

    /// A path in it.
    pub fn join(&self, name: &str) -> Utf8PathBuf {
        self.path.join(name)
    }
}

impl Drop for Workspace {
    fn drop(&mut self) {
        if let Err(error) = remove_all(&self.path) {
            tracing::warn!(%error, "work in progress is left behind; the next start removes it");
        }
    }
}

/// `<process>-<number>`, as [`Workspace::create`] names them.
fn is_named_as_ours(name: &str) -> bool {
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    name.split_once('-').is_some_and(|(process, number)| is_number(process) && is_number(number))
}

/// Removes what dead processes left; returns the bytes freed.
pub fn remove_leftovers(directory: &Utf8Path) -> Result<u64, StorageError> {
    let _gate = gate(directory, FlockOperation::LockExclusive)?;
    let mut freed = 0;
    for name in names_in(directory)? {
        // Whatever is not named as ours may be somebody's.
        if !is_named_as_ours(&name) {
            continue;
        }
        let path = directory.join(name);
        let lock = OpenOptions::new().write(true).open(path.join(LOCK));
        let dead = match &lock {
            Ok(lock) => flock(lock, FlockOperation::NonBlockingLockExclusive).is_ok(),
            // Without a lock file it was cut short before it began or while it was removed.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => true,
            Err(error) => {
                tracing::warn!(%path, %error, "work that may be in progress is left alone: its lock cannot be looked at");
                false
            }
        };
        if dead {
            freed += disk_usage(&path).unwrap_or(0);
            remove_all(&path)?;
        }
    }
    Ok(freed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leftovers_go_and_living_work_stays() {
        let root = tempfile::tempdir().unwrap();
        let root = Utf8Path::from_path(root.path()).unwrap();
        let living = Workspace::create(root).unwrap();
        let dead = root.join("1-0");
        fs::create_dir(&dead).unwrap();
        fs::write(dead.join(LOCK), "").unwrap();
        fs::write(dead.join("data"), [1; 9000]).unwrap();
        assert!(remove_leftovers(root).unwrap() >= 9000);
        assert!(living.path().exists() && !dead.exists());
        for foreign in ["notes.txt", "1-", "-0", "a-0", "1-0.bak", "systemd-private-x"] {
            fs::write(root.join(foreign), "somebody's").unwrap();
        }
        remove_leftovers(root).unwrap();
        for foreign in ["notes.txt", "1-", "-0", "a-0", "1-0.bak", "systemd-private-x"] {
            assert!(root.join(foreign).exists(), "{foreign} was removed");
        }
        // What cannot be looked at (here a directory, on a busy server the limit of open files) may be alive.
        let unknown = root.join("2-0");
        fs::create_dir_all(unknown.join(LOCK)).unwrap();
        remove_leftovers(root).unwrap();
        assert!(unknown.exists());
        let path = living.path().to_owned();
        drop(living);
        assert!(!path.exists());
    }
}
