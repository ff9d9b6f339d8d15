//! The build cache: what a build with certain inputs had made.
//!
//! A file each, written whole or not at all, and checked when it is read. One that was cut or damaged, or whose image is gone, is
//! no entry: the build is done again, and replaces it.

use camino::Utf8PathBuf;
use microvm_durable::error::bad_input;
use microvm_durable::files::{disk_usage, is_sha256, names_in, remove_all, rename_durably};
use microvm_durable::manifest;
use microvm_durable::workspace::Workspace;
use microvm_ports::StorageError;
use microvm_ports::storage::ImageInfo;
use serde::{Deserialize, Serialize};

use super::ImageFiles;
use super::names::check_name;

#[derive(Serialize, Deserialize)]
struct BuildManifest {
    /// The image.
    digest: String,
}

impl ImageFiles {
    fn build_path(&self, key: &str) -> Result<Utf8PathBuf, StorageError> {
        if is_sha256(key) {
            Ok(self.builds.join(key))
        } else {
            Err(bad_input("the key of a build", "it is no SHA-256"))
        }
    }

    /// Digest of the image that a build with this key had made, if it is there.
    pub(crate) fn cached_build(&self, key: &str) -> Result<Option<String>, StorageError> {
        let path = self.build_path(key)?;
        if !path.exists() {
            return Ok(None);
        }
        match manifest::read::<BuildManifest>(&path, "an entry of the build cache") {
            Ok(entry) if is_sha256(&entry.digest) && self.image_info(&entry.digest, Vec::new()).is_ok() => {
                Ok(Some(format!("sha256:{}", entry.digest)))
            }
            Ok(_) => Ok(None),
            Err(error) => {
                tracing::warn!(%error, %path, "an entry of the build cache is not used");
                Ok(None)
            }
        }
    }

    /// Remembers the image that a build with this key made.
    pub(crate) fn remember_build(
        &self,
        key: &str,
        digest: &str,
        workspace: &Workspace,
    ) -> Result<(), StorageError> {
        let new = workspace.join("build.json");
        let digest = digest.strip_prefix("sha256:").unwrap_or(digest).to_owned();
        manifest::write(&new, &BuildManifest { digest })?;
        rename_durably(&new, &self.build_path(key)?)
    }

    /// Removes entries that no build can use any more; returns the bytes freed.
    pub(crate) fn remove_old_builds(&self) -> Result<u64, StorageError> {
        let mut freed = 0;
        for key in names_in(&self.builds)?.into_iter().filter(|name| is_sha256(name)) {
            if self.cached_build(&key)?.is_none() {
                let path = self.build_path(&key)?;
                freed += disk_usage(&path).unwrap_or(0);
                remove_all(&path)?;
            }
        }
        Ok(freed)
    }

    /// Points a further name to an image.
    pub(crate) fn add_name(
        &self,
        reference: &str,
        name: &str,
        workspace: &Workspace,
    ) -> Result<ImageInfo, StorageError> {
        check_name(name)?;
        let _publishing = self.publishing.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let digest = self.find_image(reference)?;
        // Refuses one that is damaged before the name leaves the other.
        self.image_info(&digest, Vec::new())?;
        self.names.write(workspace, name, &digest)?;
        let names = self.names.by_digest()?.remove(&digest).unwrap_or_default();
        self.image_info(&digest, names)
    }
}
