//! Remembers that a file was verified, until it changes.
//!
//! Hashing 150 MB at every start of a VM would cost more than the start. So a file is hashed in full at its first use and
//! then known by inode, size, and both times of change: nobody changes a bit of a file through the file system without changing
//! them. `verify_all` never trusts a stamp.

use std::collections::HashMap;
use std::os::unix::fs::MetadataExt;
use std::sync::{Mutex, PoisonError};

use camino::{Utf8Path, Utf8PathBuf};
use microvm_ports::StorageError;
use serde::{Deserialize, Serialize};

use super::error::{damaged, io_error};
use super::files::{remove_all, sha256_file};
use super::manifest;

/// Facts that change with any change of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    /// The stamp of a file as it is now.
    pub fn of(path: &Utf8Path) -> Result<Self, StorageError> {
        let metadata = path.symlink_metadata().map_err(io_error("examining", path))?;
        Ok(Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        })
    }
}

/// A stamp together with the hash the file had then.
#[derive(Serialize, Deserialize)]
struct Verified {
    stamp: Stamp,
    sha256: String,
}

/// Files verified so far.
#[derive(Default)]
pub struct VerifiedFiles(Mutex<HashMap<Utf8PathBuf, Stamp>>);

impl VerifiedFiles {
    /// Verifies that `file` has the length and hash it should have. `beside`: where the stamp is kept between runs.
    pub fn verify(
        &self,
        file: &Utf8Path,
        what: &str,
        sha256: &str,
        size: u64,
        beside: &Utf8Path,
    ) -> Result<(), StorageError> {
        let stamp = Stamp::of(file)?;
        if stamp.size != size {
            return Err(damaged(what, format!("it should have {size} bytes, but has {}", stamp.size)));
        }
        if self.known(file) == Some(stamp) {
            return Ok(());
        }
        let stored = std::fs::read(beside).ok().and_then(|bytes| manifest::decode::<Verified>(&bytes).ok());
        if stored.is_none_or(|stored| stored.stamp != stamp || stored.sha256 != sha256) {
            verify_now(file, what, sha256, size)?;
            self.store(stamp, sha256, beside);
        }
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(file.to_owned(), stamp);
        Ok(())
    }

    /// Remembers a file that was hashed while it was written.
    pub fn remember(&self, file: &Utf8Path, sha256: &str, beside: &Utf8Path) {
        if let Ok(stamp) = Stamp::of(file) {
            self.store(stamp, sha256, beside);
        }
    }

    fn known(&self, file: &Utf8Path) -> Option<Stamp> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(file).copied()
    }

    fn store(&self, stamp: Stamp, sha256: &str, beside: &Utf8Path) {
        // A stamp that cannot be written costs time, nothing else. No sync: a torn one fails its own checksum.
        let temporary = Utf8PathBuf::from(format!("{beside}.{}", std::process::id()));
        let body = manifest::encode(&Verified { stamp, sha256: sha256.to_owned() });
        if std::fs::write(&temporary, body).and_then(|()| std::fs::rename(&temporary, beside)).is_err() {
            let _ = remove_all(&temporary);
            tracing::debug!(path = %beside, "a verification stamp could not be kept");
        }
    }
}

/// Hashes the file now, whatever is remembered.
pub fn verify_now(file: &Utf8Path, what: &str, sha256: &str, size: u64) -> Result<(), StorageError> {
    let (found, length) = sha256_file(file)?;
    if length != size {
        return Err(damaged(what, format!("it should have {size} bytes, but has {length}")));
    }
    if found != sha256 {
        return Err(damaged(what, format!("its SHA-256 should be {sha256}, but is {found}")));
    }
    Ok(())
}
