//! The image store: immutable file systems with their configuration by digest, and names that point to them.
//!
//! ```text
//! names/<name>            the digest it stands for
//! <digest>/root.erofs     the file system; one file with several names where images have equal files
//! <digest>/manifest.json  SHA-256 of the file system, configuration, source
//! ```
//!
//! The digest of an image is over its files and its configuration: whoever refers to it gets the user and the variables it
//! had then, whatever else is imported later. Images of older versions have the digest of their files alone; they keep it.

mod add;
mod identity;
mod names;
mod port;
mod publish;
mod read;
mod verify;

pub(crate) use add::refuse_empty;
use microvm_ports::storage::ImageConfig;
use serde::{Deserialize, Serialize};

/// File system of an image.
const ROOT_FILE: &str = "root.erofs";
/// Its manifest.
pub(crate) const MANIFEST: &str = "manifest.json";
/// Remembers that the file was verified.
const STAMP: &str = "verified.json";

/// What is stored beside an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct ImageManifest {
    /// Of the file system alone.
    sha256: String,
    size: u64,
    created_ms: i64,
    source: String,
    config: ImageConfig,
}
