//! The image store: immutable file systems by digest, and names that point to them.

mod add;
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
    sha256: String,
    size: u64,
    created_ms: i64,
    source: String,
    config: ImageConfig,
}
