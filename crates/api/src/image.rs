//! Images.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// How programs run in an image.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ImageConfig {
    /// Variables of every command.
    #[serde(default)]
    pub environment: BTreeMap<String, String>,
    /// Default user; empty: root.
    #[serde(default)]
    pub user: String,
    /// Default working directory; empty: the user's home.
    #[serde(default)]
    pub working_directory: String,
    /// Entry point of an OCI image.
    #[serde(default)]
    pub entrypoint: Vec<String>,
    /// Default arguments of an OCI image.
    #[serde(default)]
    pub command: Vec<String>,
}

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
    /// How programs run in it.
    pub config: ImageConfig,
}

/// All images, newest first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ImageList {
    /// The images.
    pub images: Vec<Image>,
}

/// Where a new image comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case", tag = "kind")]
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
    },
    /// A recipe, as its YAML or JSON text.
    Recipe {
        /// The text.
        text: String,
        /// Folder that relative file names in it refer to; absolute path on the server's host.
        directory: String,
    },
}

/// An image to be made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AddImage {
    /// Its name; with a recipe the recipe's own is used if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Where it comes from.
    pub source: ImageSource,
}

/// What a clean-up freed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Freed {
    /// Bytes.
    pub bytes: u64,
}
