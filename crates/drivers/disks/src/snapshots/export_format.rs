//! The file that carries a snapshot to another host.
//!
//! ```text
//!  "MICROVM-SNAPSHOT"   version u32 = 1, little-endian
//!  one zstd stream of:
//!    length u32 and bytes of the manifest, which has the length and the checksums of every part
//!    device state · packed memory · packed empty disk · disk layers, newest first
//! ```
//!
//! The memory is whole in itself. The empty disk comes along because another version of the tool that formats it may
//! format it otherwise, and the layers only fit what they were written over.

use serde::{Deserialize, Serialize};

use super::manifest::SnapshotManifest;
use super::part::Part;

pub(crate) const MAGIC: &[u8; 16] = b"MICROVM-SNAPSHOT";
pub(crate) const VERSION: u32 = 1;
/// Memory that a reader needs for decompression: 8 MiB.
pub(crate) const WINDOW_LOG: u32 = 23;
/// Longest manifest.
pub(crate) const MANIFEST_MAX: u32 = 1 << 20;

/// Body of the manifest.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct ExportManifest {
    pub(crate) snapshot: SnapshotManifest,
    /// The empty disk as packed pages.
    pub(crate) base: Part,
}
