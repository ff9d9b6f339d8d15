//! Images: immutable root file systems.

use async_trait::async_trait;
use camino::{Utf8Path, Utf8PathBuf};
use microvm_types::Listed;
pub use microvm_types::image::{ChangedPath, CopyStep, DirectoryStep, ImageConfig, RegistryLogin};
use microvm_types::template::DiskFormat;
use serde::{Deserialize, Serialize};

use super::error::StorageError;
use crate::guest::ByteStream;
use crate::progress::Progress;

/// File system of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FileSystem {
    /// EROFS, uncompressed.
    Erofs,
    /// ext4.
    Ext4,
}

/// Longest name of an image.
const NAME_MAX: usize = 128;

/// Characters of the shortest beginning of a digest that stands for an image: `sha256:` and twelve digits.
const SHORTEST_REFERENCE: usize = 19;

/// One image in the store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageInfo {
    /// SHA-256 over the files and the configuration, as `sha256:` and 64 hexadecimal characters. Images that differ in
    /// either differ in it. Images made before this was so keep the SHA-256 of their file system alone.
    pub digest: String,
    /// Names that point to it.
    pub names: Vec<String>,
    /// File system it is written in.
    pub file_system: FileSystem,
    /// Size of the file in bytes.
    pub size: u64,
    /// When it was made, milliseconds since 1970-01-01T00:00:00Z.
    pub created_ms: i64,
    /// Origin in a few words.
    pub source: String,
    /// Configuration of programs that run in it.
    pub config: ImageConfig,
}

impl ImageInfo {
    /// Refuses names that no image can have: names are file names of stores, and none is taken for a digest.
    ///
    /// # Errors
    /// [`StorageError::BadInput`] says what a name has.
    pub fn check_name(name: &str) -> Result<(), StorageError> {
        let is_fine = name.len() <= NAME_MAX
            && name.as_bytes().first().is_some_and(u8::is_ascii_alphanumeric)
            && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._:-".contains(&byte))
            && !name.starts_with("sha256:");
        if is_fine {
            return Ok(());
        }
        let shown: String = name.chars().take(NAME_MAX).collect();
        Err(StorageError::BadInput {
            what: format!("the image name `{}`", shown.escape_debug()),
            detail: format!(
                "a name has 1 to {NAME_MAX} letters, digits, `.`, `_`, `:` and `-`, and begins with a letter or digit"
            ),
        })
    }

    /// The image in a word or two, for descriptions of what was made of it: its name, the origin of one between two steps of a build,
    /// or the beginning of its digest.
    #[must_use]
    pub fn called(&self) -> &str {
        let lasting = self.names.iter().find(|name| !name.starts_with("build-"));
        match (lasting, self.names.is_empty()) {
            (Some(name), _) => name,
            (None, false) => &self.source,
            (None, true) => self.digest.get(..19).unwrap_or(&self.digest),
        }
    }

    /// The image of a list that a name, a digest or the beginning of one (`sha256:` and at least twelve digits) stands for. A
    /// name wins.
    ///
    /// # Errors
    /// [`StorageError::UnknownImage`]; [`StorageError::AmbiguousImage`] if several digests begin so.
    pub fn find<'a>(images: &'a [Self], reference: &str) -> Result<&'a Self, StorageError> {
        if let Some(named) = images.iter().find(|image| image.names.iter().any(|name| name == reference)) {
            return Ok(named);
        }
        let begins =
            |image: &&Self| reference.len() >= SHORTEST_REFERENCE && image.digest.starts_with(reference);
        let found: Vec<&Self> = images.iter().filter(begins).collect();
        match &found[..] {
            [only] => Ok(only),
            [] => Err(StorageError::UnknownImage(reference.chars().take(200).collect())),
            _ => {
                let all = found
                    .iter()
                    .map(|image| (image.digest.as_str(), image.names.first().map(String::as_str)));
                Err(StorageError::ambiguous_image(reference, all))
            }
        }
    }
}

/// An image ready for use: its file was verified against its digest.
#[derive(Debug, Clone)]
pub struct ResolvedImage {
    /// Description of the image.
    pub info: ImageInfo,
    /// Its file.
    pub path: Utf8PathBuf,
}

/// Source of a new image.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum ImageSource {
    /// Debian packages, put together by `mmdebstrap` from the host's own package sources.
    Debian {
        /// Release name, for example `bookworm`.
        suite: String,
        /// Packages on top of the minimal system.
        packages: Vec<String>,
        /// Users besides root; each has a home, and becomes root with `sudo` if that is among the packages.
        #[serde(default)]
        users: Vec<String>,
    },
    /// A folder, an OCI layout folder, a `docker save` archive or a plain tar (compressed or not) on this host: found
    /// out by looking.
    Path {
        /// Absolute path on the host.
        path: Utf8PathBuf,
    },
    /// An image of a registry, by reference.
    Registry {
        /// `host[:port]/name[:tag][@digest]`.
        reference: String,
        /// Speak plain HTTP; only for registries on loopback.
        plain_http: bool,
        /// Authorities (PEM) whose certificates are trusted besides those that the host trusts.
        authorities: Option<String>,
        /// User and password at the registry.
        login: Option<RegistryLogin>,
    },
}

/// A file that an image recipe puts in.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RecipeFile {
    /// Absolute path in the image.
    pub path: String,
    /// Its text.
    #[serde(default)]
    pub content: Option<String>,
    /// Instead of `content`: a file or a folder on the host, absolute, or relative to the recipe.
    #[serde(default)]
    pub source: Option<String>,
    /// Permission bits in octal, for example "0755"; of a file only. A file of the host keeps its own without.
    #[serde(default)]
    pub mode: Option<String>,
}

/// Everything that a recipe puts on top of an image without a VM. The host resolves and fetches it: a guest needs no network.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Additions {
    /// Debian packages, resolved against those that the image has, from the package sources of the host.
    #[serde(default)]
    pub packages: Vec<String>,
    /// Requirements as `pip` takes them, for the Python of the image.
    #[serde(default)]
    pub pip: Vec<String>,
    /// Packages as `npm` takes them, for the Node of the image.
    #[serde(default)]
    pub npm: Vec<String>,
    /// Files and folders.
    #[serde(default)]
    pub files: Vec<RecipeFile>,
    /// Further files and directories, put in one after the other.
    #[serde(default)]
    pub placements: Vec<Placement>,
}

/// A step of an ordered build that needs no VM.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum Placement {
    /// Files of the host.
    Copy(CopyStep),
    /// A directory.
    Directory(DirectoryStep),
}

impl Additions {
    /// True if nothing is put on top.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        let Self { packages, pip, npm, files, placements } = self;
        packages.is_empty() && pip.is_empty() && npm.is_empty() && files.is_empty() && placements.is_empty()
    }
}

/// An image with additions.
#[derive(Debug, Clone)]
pub struct ExtendedImage {
    /// The image.
    pub info: ImageInfo,
    /// Commands that have to run in a VM of it, in order: packages with scripts wait in it for their installation. While there
    /// are any, nothing else of the [`Additions`] is in the image.
    pub unfinished: Vec<String>,
}

/// Immutable root file systems, content-addressed. An image is there whole or not at all.
#[async_trait]
pub trait ImageStore: Send + Sync {
    /// All images, newest first; images and names that cannot be read beside them.
    async fn images(&self) -> Result<Listed<ImageInfo>, StorageError>;

    /// Finds an image by name or digest (whole, or `sha256:` and at least 12 characters) and verifies its file.
    async fn image(&self, reference: &str) -> Result<ResolvedImage, StorageError>;

    /// Makes an image of `source` and points `name` to it (away from what it pointed to before). `files` are put in on
    /// top; `config` is merged over what the source says. If the future is dropped nothing is left behind.
    async fn add_image(
        &self,
        name: &str,
        source: &ImageSource,
        files: &[RecipeFile],
        config: &ImageConfig,
        progress: Progress,
    ) -> Result<ImageInfo, StorageError>;

    /// Makes an image of a tar stream (for example the root of a guest) and points `name` to it.
    async fn add_image_from_stream(
        &self,
        name: &str,
        description: &str,
        config: &ImageConfig,
        data: ByteStream,
        progress: Progress,
    ) -> Result<ImageInfo, StorageError>;

    /// Makes an image of a layer (a tar stream with whiteouts, OCI image specification) over the image `base`, and points `name`
    /// to it. `config` is merged over that of `base`.
    async fn add_layer(
        &self,
        name: &str,
        base: &str,
        description: &str,
        config: &ImageConfig,
        data: ByteStream,
        progress: Progress,
    ) -> Result<ImageInfo, StorageError>;

    /// Format of the disk of a virtual machine that is at an absolute path of the host; `None` if there is something else. Only
    /// its first bytes are read.
    ///
    /// # Errors
    /// [`StorageError::BadInput`] names a disk whose files cannot be read: of another format, encrypted, of volumes or of Windows.
    async fn disk_at(&self, path: &Utf8Path) -> Result<Option<DiskFormat>, StorageError>;

    /// Finds what is wrong with additions before anything is fetched or started.
    ///
    /// # Errors
    /// [`StorageError::BadInput`] names the first that cannot be used.
    async fn check_additions(&self, additions: &Additions) -> Result<(), StorageError>;

    /// Makes an image of the image `base` with additions, and points `name` to it. `config` is merged over that of `base`. If the
    /// future is dropped nothing is left behind.
    ///
    /// # Errors
    /// [`StorageError::BadInput`] names a package that does not exist, or that `base` cannot have.
    async fn extend_image(
        &self,
        name: &str,
        base: &str,
        additions: &Additions,
        config: &ImageConfig,
        progress: Progress,
    ) -> Result<ExtendedImage, StorageError>;

    /// Points a further name to an image (away from what it pointed to before).
    async fn name_image(&self, reference: &str, name: &str) -> Result<ImageInfo, StorageError>;

    /// The image as one archive that is both an OCI image layout and what `docker save` writes, with its configuration. Equal images
    /// give equal archives; whoever takes one in again has the same image.
    ///
    /// # Errors
    /// [`StorageError::BadInput`] if the image has a file that no layer can hold; what fails later ends the stream.
    async fn export_image(&self, reference: &str) -> Result<ByteStream, StorageError>;

    /// The files of the image `base` with a layer (a tar stream with whiteouts, OCI image specification) over them, as one tar
    /// stream. The layer is taken whole before this returns. `what` names the files in errors.
    ///
    /// # Errors
    /// [`StorageError::BadInput`] if the layer cannot be read; what fails later ends the stream.
    async fn export_files(
        &self,
        what: &str,
        base: &str,
        layer: ByteStream,
    ) -> Result<ByteStream, StorageError>;

    /// Everything that a layer changes of the image `base`, in order of paths. A directory in which something differs counts as
    /// changed, and a directory that is gone counts once.
    ///
    /// # Errors
    /// [`StorageError::BadInput`] if the layer cannot be read, or changes more than fits into memory.
    async fn layer_changes(&self, base: &str, layer: ByteStream) -> Result<Vec<ChangedPath>, StorageError>;

    /// The key of a build in the cache: over `text` and the contents of all files of the host in `files` and `placements`.
    async fn build_key(
        &self,
        text: &str,
        files: &[RecipeFile],
        placements: &[Placement],
    ) -> Result<String, StorageError>;

    /// Digest of the image that a build with this key had made; `None` if there is none any more.
    async fn cached_build(&self, key: &str) -> Result<Option<String>, StorageError>;

    /// Remembers the image that a build with this key made.
    async fn remember_build(&self, key: &str, digest: &str) -> Result<(), StorageError>;

    /// Removes a name, and the image with its last name. `in_use`: digests that VMs depend on; those are refused.
    async fn remove_image(&self, reference: &str, in_use: &[String]) -> Result<(), StorageError>;

    /// Removes a name, and never the image, which [`ImageStore::collect_garbage`] removes when it has no other.
    async fn remove_image_name(&self, name: &str) -> Result<(), StorageError>;

    /// Removes images without a name that are not in `in_use`, and leftovers of interrupted work; returns the bytes freed.
    async fn collect_garbage(&self, in_use: &[String]) -> Result<u64, StorageError>;

    /// Removes fetched packages that are kept for later builds; returns the bytes freed. Those that a running build uses stay.
    async fn clear_package_cache(&self) -> Result<u64, StorageError>;

    /// Verifies every image and kernel in full; returns what is wrong, empty if nothing.
    async fn verify_all(&self, progress: Progress) -> Result<Vec<String>, StorageError>;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(digest: &str, names: &[&str]) -> ImageInfo {
        ImageInfo {
            digest: format!("sha256:{digest}"),
            names: names.iter().map(|name| (*name).to_owned()).collect(),
            file_system: FileSystem::Erofs,
            size: 0,
            created_ms: 0,
            source: String::new(),
            config: ImageConfig::default(),
        }
    }

    #[test]
    fn names_cannot_be_paths_or_digests() {
        for name in ["debian-python", "python:3.12", "a"] {
            ImageInfo::check_name(name).unwrap();
        }
        for name in ["", "..", ".a", "a/b", "a b", "sha256:00", "\u{e4}", "a\n", &"x".repeat(129)] {
            assert!(ImageInfo::check_name(name).is_err(), "{name}");
        }
    }

    #[test]
    fn a_reference_stands_for_one_image_or_is_refused_with_all_that_it_fits() {
        let digit = |last: char| format!("{}{last}", "a".repeat(63));
        let mut images = vec![image(&digit('1'), &["web"]), image(&digit('2'), &[])];
        let find = |images: &[ImageInfo], reference: &str| {
            ImageInfo::find(images, reference).map(|image| image.digest.clone())
        };
        assert_eq!(find(&images, "web").unwrap(), images[0].digest);
        assert_eq!(find(&images, &images[1].digest).unwrap(), images[1].digest);
        let refused = find(&images, "sha256:aaaaaaaaaaaa").unwrap_err();
        assert!(matches!(refused, StorageError::AmbiguousImage { .. }), "{refused}");
        let told = refused.to_string();
        assert!(told.contains(&format!("{} (web)", images[0].digest)), "{told}");
        assert!(told.contains(&images[1].digest) && !told.contains("more;"), "{told}");
        // Eleven digits are too few, also for one image.
        assert!(matches!(find(&images[..1], "sha256:aaaaaaaaaaa"), Err(StorageError::UnknownImage(_))));
        images.extend(('3'..='8').map(|last| image(&digit(last), &[])));
        assert!(find(&images, "sha256:aaaaaaaaaaaa").unwrap_err().to_string().contains("and 3 more"));
        // A name that looks like the beginning of digests is a name.
        images[7].names.push("sha256:aaaaaaaaaaaa".to_owned());
        assert_eq!(find(&images, "sha256:aaaaaaaaaaaa").unwrap(), images[7].digest);
    }
}
