//! The file that carries a snapshot to another host.
//!
//! ```text
//!  "MICROVM-SNAPSHOT"   version u32 = 1 or 2, little-endian
//!  one zstd stream of:
//!    length u32 and bytes of the manifest, which has the length and the checksums of every part
//!    parts of the state · packed memory · packed empty disk · disk layers, newest first
//! ```
//!
//! The memory is whole in itself. The empty disk comes along because another version of the tool that formats it may
//! format it otherwise, and the layers only fit what they were written over.

use serde::{Deserialize, Serialize};

use super::manifest::SnapshotManifest;
use super::part::Part;

pub(crate) const MAGIC: &[u8; 16] = b"MICROVM-SNAPSHOT";
/// Version of files whose state has one part, the device state, which all programs read.
const VERSION: u32 = 1;
/// Version of files whose state has other parts, too.
const VERSION_OF_PARTS: u32 = 2;
/// Memory that a reader needs for decompression: 8 MiB.
pub(crate) const WINDOW_LOG: u32 = 23;
/// Longest manifest.
pub(crate) const MANIFEST_MAX: u32 = 1 << 20;

/// Versions that this program reads.
pub(crate) const VERSIONS: std::ops::RangeInclusive<u32> = VERSION..=VERSION_OF_PARTS;

/// Version of the file of a snapshot: the lowest that tells all of it.
pub(crate) fn version_of(snapshot: &SnapshotManifest) -> u32 {
    if snapshot.state_parts.is_empty() { VERSION } else { VERSION_OF_PARTS }
}

/// Body of the manifest.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct ExportManifest {
    pub(crate) snapshot: SnapshotManifest,
    /// The empty disk as packed pages.
    pub(crate) base: Part,
}
