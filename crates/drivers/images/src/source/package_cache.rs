//! Removing fetched packages.

use std::fs::{File, TryLockError};

use camino::Utf8Path;
use microvm_durable::error::io_error;
use microvm_durable::files::{disk_usage, names_in, remove_all};
use microvm_ports::StorageError;

/// File that is locked while apt uses the folder beside it.
pub(super) const LOCK: &str = "lock";

/// Removes what was fetched for each release of Debian unless a build uses it now; returns the bytes freed. `cache`: the folder of
/// everything fetched.
pub(crate) fn clear(cache: &Utf8Path) -> Result<u64, StorageError> {
    let (mut freed, releases) = (0, cache.join("apt"));
    if !releases.exists() {
        return Ok(0);
    }
    for release in names_in(&releases)? {
        let folder = releases.join(release);
        let path = folder.join(LOCK);
        let lock = match File::open(&path) {
            Ok(lock) => lock,
            // A build is making the folder.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            Err(error) => return Err(io_error("opening", &path)(error)),
        };
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => continue,
            Err(TryLockError::Error(error)) => return Err(io_error("locking", &path)(error)),
        }
        // The file of the lock stays: whoever waits for it has it open.
        for name in names_in(&folder)?.into_iter().filter(|name| name != LOCK) {
            let path = folder.join(name);
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
    fn packages_go_unless_a_build_uses_them() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Utf8Path::from_path(folder.path()).unwrap();
        assert_eq!(clear(cache).unwrap(), 0);
        let file = |release: &str, name: &str| {
            let path = cache.join("apt").join(release).join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, vec![1; 10_000]).unwrap();
            path
        };
        let (lock, used) = (file("bookworm", LOCK), file("bookworm", "archives/a.deb"));
        let (other_lock, unused) = (file("trixie", LOCK), file("trixie", "archives/a.deb"));
        let held = File::open(&lock).unwrap();
        held.lock().unwrap();
        assert!(clear(cache).unwrap() >= 10_000);
        assert!(used.exists() && !unused.exists() && other_lock.exists());
        drop(held);
        assert!(clear(cache).unwrap() >= 10_000);
        assert!(!used.exists() && lock.exists());
    }
}
