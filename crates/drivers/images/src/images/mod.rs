//! The image store: immutable file systems with their configuration by digest, and names that point to them.
//!
//! ```text
//! names/<name>            the digest it stands for
//! builds/<key>            the digest that a build with these inputs had
//! <digest>/root.erofs     the file system; one file with several names where images have equal files
//! <digest>/manifest.json  SHA-256 of the file system, configuration, source
//! ```
//!
//! The digest of an image is over its files and its configuration: whoever refers to it gets the user and the variables it
//! had then, whatever else is imported later. Images of older versions have the digest of their files alone; they keep it.

mod builds;
mod identity;
mod names;
mod publish;
mod read;
mod remove;

use std::sync::{Arc, Mutex};

use camino::Utf8PathBuf;
use microvm_durable::stamp::VerifiedFiles;
use microvm_ports::Clock;
use microvm_ports::storage::ImageConfig;
use serde::{Deserialize, Serialize};

use self::names::NameFiles;
pub(crate) use self::names::check_name;

/// File system of an image.
const ROOT_FILE: &str = "root.erofs";
/// Its manifest.
pub(crate) const MANIFEST: &str = "manifest.json";
/// Remembers that the file was verified.
const STAMP: &str = "verified.json";

/// Manifest stored beside an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct ImageManifest {
    /// Of the file system alone.
    sha256: String,
    size: u64,
    created_ms: i64,
    source: String,
    config: ImageConfig,
}

/// Images: a directory each, called by its digest.
pub(crate) struct ImageFiles {
    directory: Utf8PathBuf,
    pub(crate) names: NameFiles,
    /// The build cache.
    builds: Utf8PathBuf,
    /// For work in progress.
    work: Utf8PathBuf,
    clock: Arc<dyn Clock>,
    verified: VerifiedFiles,
    /// Held for the moment in which names and images are changed, never while work is done.
    publishing: Mutex<()>,
}

impl ImageFiles {
    /// Images in `directory`, which have names in `names`, a build cache in `builds`, and are made in `work`.
    pub(crate) fn new(
        directory: Utf8PathBuf,
        names: Utf8PathBuf,
        builds: Utf8PathBuf,
        work: Utf8PathBuf,
        clock: Arc<dyn Clock>,
    ) -> Self {
        Self {
            directory,
            names: NameFiles::new(names),
            builds,
            work,
            clock,
            verified: VerifiedFiles::default(),
            publishing: Mutex::default(),
        }
    }
}
