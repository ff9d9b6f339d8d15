//! Copies between this host and a guest: files, directories, tar streams.
//!
//! What comes from a guest is hostile: nothing is written outside the target, whatever names, links and types an
//! archive holds (see `unpack.rs`). Every transfer's SHA-256 is compared with what the other side counted.

mod budget;
mod extents;
#[cfg(test)]
mod holes;
mod pack;
mod permissions;
mod pull;
mod push;
mod sparse;
mod sum;
mod temporary;
mod unpack;

use std::path::Path;

use microvm_types::files::LeftOut;
use serde::Serialize;

use crate::error::ClientError;

pub use budget::Budget;
pub use pull::{pull, pull_directory, pull_stream};
pub use push::{push, push_directory, push_stream};

/// Largest `results.json` that is read, in bytes.
const RESULTS_MAX: u64 = 16 << 20;

/// Result of a copy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Moved {
    /// Bytes, the archive's own included where one was used.
    pub bytes: u64,
    /// SHA-256 of them; none for a file with more than 64 MiB of holes, which are not read, sent or hashed.
    pub sha256: Option<String>,
    /// Entries that were not copied.
    pub left_out: LeftOut,
    /// True if that is all of them: the agent of a VM that was started by an older version does not report what it leaves
    /// out.
    pub left_out_is_complete: bool,
}

impl Default for Moved {
    /// Nothing.
    fn default() -> Self {
        Self { bytes: 0, sha256: None, left_out: LeftOut::default(), left_out_is_complete: true }
    }
}

/// Limits of a copy out of a guest.
#[derive(Debug)]
pub struct Rules {
    /// Bytes that it may write.
    pub budget: Budget,
    /// Handling of links that lead out of the copied directory.
    pub links: OutsideLinks,
}

/// Handling of symbolic links that lead out of the copied directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OutsideLinks {
    /// They stay links; nothing is read or written through them.
    #[default]
    Keep,
    /// They are left out.
    Skip,
}

/// `results.json` of an output directory, parsed; `None` if there is none.
///
/// # Errors
/// If it is too large or not JSON.
pub fn results(directory: &Path) -> Result<Option<serde_json::Value>, ClientError> {
    let path = directory.join("results.json");
    // Not followed: a link of the guest's would have a file of this host read.
    let metadata = match std::fs::symlink_metadata(&path) {
        Ok(metadata) if metadata.is_file() => metadata,
        // Not a plain file: whatever the guest made of it, it is not results.
        _ => return Ok(None),
    };
    if metadata.len() > RESULTS_MAX {
        let detail =
            format!("results.json has {} bytes, at most {RESULTS_MAX} are read: write less", metadata.len());
        return Err(ClientError::invalid("results_invalid", detail));
    }
    let text = std::fs::read(&path).map_err(|error| ClientError::file("reading", &path, &error))?;
    serde_json::from_slice(&text).map(Some).map_err(|error| {
        ClientError::invalid("results_invalid", format!("results.json is not JSON: {error}"))
    })
}
