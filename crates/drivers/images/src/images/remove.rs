//! Removing names and images.

use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt as _;
use std::sync::PoisonError;

use microvm_durable::error::{damaged, io_error};
use microvm_durable::files::{disk_usage, sync_directory};
use microvm_durable::workspace::Workspace;
use microvm_ports::StorageError;

use super::names::{Names, check_name};
use super::read::describe;
use super::{ImageFiles, ROOT_FILE};

impl ImageFiles {
    /// Removes a name, and the image with its last one.
    pub(crate) fn remove_reference(&self, reference: &str, in_use: &[String]) -> Result<(), StorageError> {
        let _publishing = self.publishing.lock().unwrap_or_else(PoisonError::into_inner);
        let sha256 = self.find_image(reference)?;
        let mut all = self.names.all()?;
        let names = all.by_digest.remove(&sha256).unwrap_or_default();
        let by_digest = reference.starts_with("sha256:");
        let last = by_digest || names.iter().all(|name| name == reference);
        if last && self.digests_in_use(in_use)?.contains(&sha256) {
            return Err(StorageError::InUse {
                name: describe(&sha256, &names),
                users: "VMs or snapshots that were made of it".into(),
            });
        }
        for name in names.iter().filter(|name| by_digest || *name == reference) {
            self.names.delete(name)?;
        }
        if !by_digest && names.is_empty() {
            // A damaged name file that still named the digest.
            self.names.delete(reference)?;
        }
        // A name that cannot be read may be one of this image: its files stay until that is settled.
        let perhaps_named =
            !by_digest && all.unreadable.iter().any(|unreadable| unreadable.name != reference);
        if last && !perhaps_named { self.remove_files(&sha256).map(|_| ()) } else { Ok(()) }
    }

    /// Removes a name, and never the image.
    pub(crate) fn remove_name(&self, name: &str) -> Result<(), StorageError> {
        let _publishing = self.publishing.lock().unwrap_or_else(PoisonError::into_inner);
        check_name(name)?;
        self.names.delete(name)
    }

    /// Removes images without a name that are not in use; returns the bytes freed.
    ///
    /// # Errors
    /// [`StorageError::Damaged`] if a name cannot be read: which image it is of is not known, and nothing is removed.
    pub(crate) fn remove_unnamed(&self, in_use: &[String]) -> Result<u64, StorageError> {
        let mut freed = 0;
        let _publishing = self.publishing.lock().unwrap_or_else(PoisonError::into_inner);
        let Names { by_digest: names, unreadable } = self.names.all()?;
        if let Some(unreadable) = unreadable.first() {
            return Err(damaged(
                format!("the image name `{}`", unreadable.name),
                "no image is removed while the image that it is of is not known: repair it, or remove the name",
            ));
        }
        let used = self.digests_in_use(in_use)?;
        for sha256 in self.digests()? {
            if !names.contains_key(&sha256) && !used.contains(&sha256) {
                freed += self.remove_files(&sha256)?;
            }
        }
        Ok(freed)
    }

    /// Images that `in_use` stands for. Where a digest of files alone may mean several, all are in use.
    fn digests_in_use(&self, in_use: &[String]) -> Result<BTreeSet<String>, StorageError> {
        let mut used = BTreeSet::new();
        for digest in in_use {
            used.extend(self.meant_by(digest)?);
        }
        Ok(used)
    }

    /// Out of sight first, then away.
    fn remove_files(&self, sha256: &str) -> Result<u64, StorageError> {
        let directory = self.image_path(sha256);
        if !directory.exists() {
            return Ok(0);
        }
        // A file that other images share stays.
        let shared = std::fs::metadata(directory.join(ROOT_FILE))
            .ok()
            .filter(|file| file.nlink() > 1)
            .map_or(0, |file| file.blocks() * 512);
        let freed = disk_usage(&directory)?.saturating_sub(shared);
        let workspace = Workspace::create(&self.work)?;
        std::fs::rename(&directory, workspace.join("image")).map_err(io_error("removing", &directory))?;
        sync_directory(&self.directory)?;
        Ok(freed)
    }
}
