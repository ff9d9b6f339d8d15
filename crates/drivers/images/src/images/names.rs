//! Names of images: one small file each.

use std::collections::BTreeMap;

use camino::Utf8PathBuf;
use microvm_durable::error::damaged;
use microvm_durable::files::{is_sha256, names_in, remove_all, rename_durably, sync_directory};
use microvm_durable::manifest;
use microvm_durable::workspace::Workspace;
use microvm_ports::StorageError;
use microvm_ports::storage::ImageInfo;
use microvm_types::Unreadable;
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize)]
struct NameManifest {
    sha256: String,
}

/// Names of images.
#[derive(Default)]
pub(super) struct Names {
    pub(super) by_digest: BTreeMap<String, Vec<String>>,
    /// Those that cannot be read.
    pub(super) unreadable: Vec<Unreadable>,
}

/// Refuses names that could not be a file name of ours or could be taken for a digest.
pub(crate) fn check_name(name: &str) -> Result<(), StorageError> {
    ImageInfo::check_name(name)
}

/// The files that hold the names.
pub(crate) struct NameFiles {
    directory: Utf8PathBuf,
}

impl NameFiles {
    /// Names in `directory`.
    pub(super) fn new(directory: Utf8PathBuf) -> Self {
        Self { directory }
    }

    /// Every file in the directory, whatever it holds.
    pub(crate) fn files(&self) -> Result<Vec<String>, StorageError> {
        names_in(&self.directory)
    }

    pub(super) fn path(&self, name: &str) -> Utf8PathBuf {
        self.directory.join(name)
    }

    /// The digest (hexadecimal) a name points to.
    pub(crate) fn read(&self, name: &str) -> Result<Option<String>, StorageError> {
        let path = self.path(name);
        if !path.exists() {
            return Ok(None);
        }
        let what = format!("the image name `{name}`");
        let found: NameManifest = manifest::read(&path, &what)?;
        if !is_sha256(&found.sha256) {
            return Err(damaged(what, "it points to something that is not a digest"));
        }
        Ok(Some(found.sha256))
    }

    /// Points a name to a digest.
    pub(super) fn write(&self, workspace: &Workspace, name: &str, sha256: &str) -> Result<(), StorageError> {
        let new = workspace.join("name.json");
        manifest::write(&new, &NameManifest { sha256: sha256.to_owned() })?;
        rename_durably(&new, &self.path(name))
    }

    pub(super) fn delete(&self, name: &str) -> Result<(), StorageError> {
        remove_all(&self.path(name))?;
        sync_directory(&self.directory)
    }

    /// All names by digest, for those who look at one image; damaged ones are left out (lists and `verify` tell of them).
    pub(crate) fn by_digest(&self) -> Result<BTreeMap<String, Vec<String>>, StorageError> {
        Ok(self.all()?.by_digest)
    }

    /// All names.
    pub(super) fn all(&self) -> Result<Names, StorageError> {
        let mut names = Names::default();
        for name in self.files()? {
            match self.read(&name) {
                Ok(Some(sha256)) => names.by_digest.entry(sha256).or_default().push(name),
                Ok(None) => {}
                Err(error) => names.unreadable.push(Unreadable::new(name, error)),
            }
        }
        Ok(names)
    }
}
