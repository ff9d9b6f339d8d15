//! The port for images.

use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt as _;
use std::sync::PoisonError;

use async_trait::async_trait;
use microvm_durable::files::{disk_usage, sync_directory};
use microvm_durable::workspace::remove_leftovers;
use microvm_ports::guest::ByteStream;
use microvm_ports::storage::{ImageConfig, ImageInfo, ImageSource, RecipeFile, ResolvedImage};
use microvm_ports::{ImageStore, Progress, StorageError};
use microvm_types::Listed;

use super::ROOT_FILE;
use super::read::describe;
use crate::store::{Inner, Storage};

#[async_trait]
impl ImageStore for Storage {
    async fn images(&self) -> Result<Listed<ImageInfo>, StorageError> {
        self.blocking(|inner, _| inner.list_images()).await
    }

    async fn image(&self, reference: &str) -> Result<ResolvedImage, StorageError> {
        let reference = reference.to_owned();
        self.blocking(move |inner, _| inner.resolve_image(&reference)).await
    }

    async fn add_image(
        &self,
        name: &str,
        source: &ImageSource,
        files: &[RecipeFile],
        config: &ImageConfig,
        progress: Progress,
    ) -> Result<ImageInfo, StorageError> {
        self.add_from_source(name, source, files, config, progress).await
    }

    async fn add_image_from_stream(
        &self,
        name: &str,
        description: &str,
        config: &ImageConfig,
        data: ByteStream,
        progress: Progress,
    ) -> Result<ImageInfo, StorageError> {
        self.add_from_stream(name, description, config, data, progress).await
    }

    async fn remove_image(&self, reference: &str, in_use: &[String]) -> Result<(), StorageError> {
        let (reference, in_use) = (reference.to_owned(), in_use.to_vec());
        self.blocking(move |inner, _| inner.remove_reference(&reference, &in_use)).await
    }

    async fn collect_garbage(&self, in_use: &[String]) -> Result<u64, StorageError> {
        let in_use = in_use.to_vec();
        self.blocking(move |inner, _| inner.collect(&in_use)).await
    }

    async fn verify_all(&self, progress: Progress) -> Result<Vec<String>, StorageError> {
        self.blocking(move |inner, cancel| inner.verify_everything(&cancel, &progress)).await
    }
}

impl Inner {
    fn remove_reference(&self, reference: &str, in_use: &[String]) -> Result<(), StorageError> {
        let _publishing = self.publishing.lock().unwrap_or_else(PoisonError::into_inner);
        let sha256 = self.find_image(reference)?;
        let names = self.all_names()?.remove(&sha256).unwrap_or_default();
        let by_digest = reference.starts_with("sha256:");
        let last = by_digest || names.iter().all(|name| name == reference);
        if last && self.digests_in_use(in_use)?.contains(&sha256) {
            return Err(StorageError::InUse {
                name: describe(&sha256, &names),
                users: "VMs made from it".into(),
            });
        }
        for name in names.iter().filter(|name| by_digest || *name == reference) {
            self.delete_name(name)?;
        }
        if !by_digest && names.is_empty() {
            // A damaged name file that still named the digest.
            self.delete_name(reference)?;
        }
        if last { self.remove_files(&sha256).map(|_| ()) } else { Ok(()) }
    }

    fn collect(&self, in_use: &[String]) -> Result<u64, StorageError> {
        let mut freed = remove_leftovers(&self.directories.work)?;
        let _publishing = self.publishing.lock().unwrap_or_else(PoisonError::into_inner);
        let names = self.all_names()?;
        let used = self.digests_in_use(in_use)?;
        for sha256 in self.digests()? {
            if !names.contains_key(&sha256) && !used.contains(&sha256) {
                freed += self.remove_files(&sha256)?;
            }
        }
        freed += self.remove_old_initramfs()?;
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
        let workspace = self.workspace()?;
        std::fs::rename(&directory, workspace.join("image"))
            .map_err(microvm_durable::error::io_error("removing", &directory))?;
        sync_directory(&self.directories.images)?;
        Ok(freed)
    }
}
