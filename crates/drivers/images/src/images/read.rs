//! Finding images and verifying them.

use camino::Utf8PathBuf;
use microvm_durable::error::{bad_input, damaged};
use microvm_durable::files::{is_sha256, names_in, remove_all};
use microvm_durable::manifest;
use microvm_durable::stamp::verify_now;
use microvm_ports::StorageError;
use microvm_ports::storage::{FileSystem, ImageInfo, ResolvedImage};
use microvm_types::{Listed, Unreadable};

use super::ImageFiles;
use super::names::Names;
use super::{ImageManifest, MANIFEST, ROOT_FILE, STAMP};

/// Fewest characters of a shortened digest.
const SHORT_DIGEST: usize = 12;

impl ImageFiles {
    pub(super) fn image_path(&self, sha256: &str) -> Utf8PathBuf {
        self.directory.join(sha256)
    }

    /// Digests of all images that are there.
    pub(crate) fn digests(&self) -> Result<Vec<String>, StorageError> {
        Ok(names_in(&self.directory)?.into_iter().filter(|name| is_sha256(name)).collect())
    }

    /// The manifest of `what`, held against the digest.
    pub(super) fn image_manifest(&self, digest: &str, what: &str) -> Result<ImageManifest, StorageError> {
        let manifest: ImageManifest = manifest::read(&self.image_path(digest).join(MANIFEST), what)?;
        if !manifest.belongs_to(digest) {
            return Err(damaged(what, "its manifest belongs to another image"));
        }
        Ok(manifest)
    }

    /// Digests of images whose file system has this SHA-256; those without a readable manifest are left out.
    pub(super) fn digests_with_files(&self, files: &str) -> Result<Vec<String>, StorageError> {
        let has = |digest: &String| {
            self.image_manifest(digest, "an image").is_ok_and(|manifest| manifest.sha256 == files)
        };
        Ok(self.digests()?.into_iter().filter(has).collect())
    }

    /// Digests of the images that a digest kept elsewhere stands for: the image itself, or, where that is gone and the
    /// digest is one of files alone (older versions), those with these files.
    pub(super) fn meant_by(&self, digest: &str) -> Result<Vec<String>, StorageError> {
        let digest = digest.strip_prefix("sha256:").unwrap_or(digest);
        if !is_sha256(digest) {
            return Ok(Vec::new());
        }
        if self.image_path(digest).exists() {
            return Ok(vec![digest.to_owned()]);
        }
        self.digests_with_files(digest)
    }

    pub(super) fn image_info(&self, digest: &str, names: Vec<String>) -> Result<ImageInfo, StorageError> {
        let what = describe(digest, &names);
        let manifest = self.image_manifest(digest, &what)?;
        Ok(ImageInfo {
            digest: format!("sha256:{digest}"),
            names,
            file_system: FileSystem::Erofs,
            size: manifest.size,
            created_ms: manifest.created_ms,
            source: manifest.source,
            config: manifest.config,
        })
    }

    /// All images, newest first; damaged images and names beside them.
    pub(crate) fn list_images(&self) -> Result<Listed<ImageInfo>, StorageError> {
        let Names { by_digest: mut names, mut unreadable } = self.names.all()?;
        let mut images = Vec::new();
        for sha256 in self.digests()? {
            match self.image_info(&sha256, names.remove(&sha256).unwrap_or_default()) {
                Ok(info) => images.push(info),
                Err(error) => unreadable.push(Unreadable::new(format!("sha256:{sha256}"), error)),
            }
        }
        let nowhere = |(digest, names): (String, Vec<String>)| {
            names.into_iter().map(move |name| {
                Unreadable::new(name, format!("it points to sha256:{digest}, which is missing"))
            })
        };
        unreadable.extend(names.into_iter().flat_map(nowhere));
        images.sort_by(|a, b| (b.created_ms, &b.digest).cmp(&(a.created_ms, &a.digest)));
        Ok(Listed { found: images, unreadable })
    }

    /// The digest a name, a digest or the beginning of one stands for.
    pub(super) fn find_image(&self, reference: &str) -> Result<String, StorageError> {
        let unknown = || StorageError::UnknownImage(reference.chars().take(200).collect());
        if let Some(digest) = reference.strip_prefix("sha256:") {
            if digest.len() < SHORT_DIGEST
                || digest.len() > 64
                || !digest.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
            {
                return Err(bad_input(
                    format!("the digest `{}`", reference.escape_debug()),
                    format!("a digest is `sha256:` and {SHORT_DIGEST} to 64 of 0-9 and a-f"),
                ));
            }
            let mut found: Vec<String> =
                self.digests()?.into_iter().filter(|known| known.starts_with(digest)).collect();
            // Images of today go first: only a digest that none of them has may be an older one, of files alone.
            let of_files = found.is_empty();
            if of_files {
                found = self.meant_by(digest)?;
            }
            return match &found[..] {
                [only] => Ok(only.clone()),
                [] => Err(unknown()),
                _ if of_files => Err(bad_input(
                    format!("the digest `{reference}`"),
                    format!(
                        "an older version gave it to files alone, and several images have these files: name one of {}",
                        found.iter().map(|digest| format!("sha256:{digest}")).collect::<Vec<_>>().join(", ")
                    ),
                )),
                _ => {
                    let names = self.names.by_digest()?;
                    let full: Vec<String> = found.iter().map(|one| format!("sha256:{one}")).collect();
                    let name = |one: &String| names.get(one).and_then(|names| names.first());
                    let all = full
                        .iter()
                        .zip(&found)
                        .map(|(full, one)| (full.as_str(), name(one).map(String::as_str)));
                    Err(StorageError::ambiguous_image(reference, all))
                }
            };
        }
        if super::names::check_name(reference).is_err() {
            return Err(unknown());
        }
        self.names.read(reference)?.ok_or_else(unknown)
    }

    /// An image ready for use.
    pub(crate) fn resolve_image(&self, reference: &str) -> Result<ResolvedImage, StorageError> {
        let sha256 = self.find_image(reference)?;
        let names = self.names.by_digest()?.remove(&sha256).unwrap_or_default();
        let what = describe(&sha256, &names);
        let directory = self.image_path(&sha256);
        if !directory.exists() {
            return Err(damaged(what, "its files are missing"));
        }
        let files = self.image_manifest(&sha256, &what)?.sha256;
        let info = self.image_info(&sha256, names)?;
        let path = directory.join(ROOT_FILE);
        if !path.exists() {
            return Err(damaged(what, "its file system is missing"));
        }
        self.verified.verify(&path, &what, &files, info.size, &directory.join(STAMP))?;
        Ok(ResolvedImage { info, path })
    }

    /// Hashes an image now.
    pub(crate) fn verify_image(&self, sha256: &str, names: &[String]) -> Result<(), StorageError> {
        let what = describe(sha256, names);
        let manifest = self.image_manifest(sha256, &what)?;
        verify_now(&self.image_path(sha256).join(ROOT_FILE), &what, &manifest.sha256, manifest.size)
    }

    /// Makes the next use of an image hash it again.
    pub(crate) fn forget_verified(&self, sha256: &str) -> Result<(), StorageError> {
        remove_all(&self.image_path(sha256).join(STAMP))
    }
}

/// An image in messages.
pub(super) fn describe(sha256: &str, names: &[String]) -> String {
    match names.first() {
        Some(name) => format!("the image `{name}` (sha256:{})", &sha256[..SHORT_DIGEST]),
        None => format!("the image sha256:{sha256}"),
    }
}
