//! Images.

pub use microvm_types::image::{BuildStep, CopyStep, DirectoryStep, ImageConfig, RegistryLogin, RunStep};
use microvm_types::{Unreadable, VmRef};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// One image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Image {
    /// `sha256:` and 64 hexadecimal characters.
    pub digest: String,
    /// Names that point to it.
    pub names: Vec<String>,
    /// `erofs` or `ext4`.
    pub file_system: String,
    /// Size in bytes.
    pub size: u64,
    /// When it was made (RFC 3339 with offset).
    pub created_at: String,
    /// Where it came from, in a few words.
    pub source: String,
    /// Settings of programs that run in it.
    pub config: ImageConfig,
}

/// All images, newest first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ImageList {
    /// The images.
    pub images: Vec<Image>,
    /// Those that cannot be read; the list is not whole then.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unreadable: Vec<Unreadable>,
}

/// Where a new image comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case", tag = "kind", deny_unknown_fields)]
pub enum ImageSource {
    /// A folder, an OCI layout folder, a `docker save` archive or a plain tar on the server's host.
    Path {
        /// Absolute path.
        path: String,
    },
    /// An image of a registry.
    Registry {
        /// `host[:port]/name[:tag][@digest]`.
        reference: String,
        /// Speak plain HTTP; only for registries on loopback.
        #[serde(default)]
        plain_http: bool,
        /// Authorities whose certificates are trusted besides those that the server's host trusts: the text of a PEM file.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        authorities: Option<String>,
        /// User and password at the registry; they are used for this request and kept nowhere.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        login: Option<RegistryLogin>,
    },
    /// Debian packages, put together from the package sources of the server's host.
    Debian {
        /// Release name, for example `bookworm`.
        suite: String,
        /// Packages on top of the minimal system.
        #[serde(default)]
        packages: Vec<String>,
        /// Users besides root; each has a home, and becomes root with `sudo` if that is among the packages.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        users: Vec<String>,
    },
    /// An image of the store.
    Image {
        /// Its name or digest.
        reference: String,
    },
}

/// A file that is put into an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ImageFile {
    /// Absolute path in the image.
    pub path: String,
    /// Its text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content: Option<String>,
    /// Instead of `content`: a file or a folder on the server's host; absolute path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// Permission bits in octal, for example "0755"; of a file only. A file of the host keeps its own without.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<String>,
}

/// An image to be made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AddImage {
    /// Its name.
    pub name: String,
    /// Where it comes from.
    pub source: ImageSource,
    /// Debian packages put in on top, resolved against those that the source has by the server's host.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub packages: Vec<String>,
    /// Requirements of `pip` put in on top: wheels for the Python of the source, fetched by the server's host.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pip: Vec<String>,
    /// Packages of `npm` put in on top for the Node of the source, fetched by the server's host; their scripts do not run.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub npm: Vec<String>,
    /// Files and folders put in on top.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub files: Vec<ImageFile>,
    /// Commands run in a VM of it before it is finished, in order; each is given to `sh -c`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub commands: Vec<String>,
    /// Steps taken in order after all of these.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub steps: Vec<BuildStep>,
    /// Settings of programs that run in it, merged over those of the source.
    #[serde(default)]
    pub config: ImageConfig,
    /// True if it is built although an equal build has made it before.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub no_cache: bool,
}

/// An image to be made of a VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CommitImage {
    /// Name or id of the VM, which runs.
    #[schema(value_type = String)]
    pub vm: VmRef,
    /// Name of the image.
    pub name: String,
    /// Settings of programs that run in it, merged over those of the VM's image.
    #[serde(default)]
    pub config: ImageConfig,
}

/// A further name of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TagImage {
    /// Name or digest of the image.
    pub image: String,
    /// Name that it gets; taken from another image that has it.
    pub name: String,
}

/// Result of a clean-up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Freed {
    /// Bytes.
    pub bytes: u64,
}
