//! Files and directories into and out of a guest.
//!
//! What comes from a guest is hostile: nothing is written outside the target, whatever names, links and types an
//! archive holds (see [`unpack`]). Every transfer's SHA-256 is compared with what the other side counted.

mod budget;
mod extents;
#[cfg(test)]
mod holes;
mod left_out;
mod pack;
mod permissions;
mod place;
mod pull;
mod push;
mod sparse;
mod sum;
mod temporary;
mod unpack;

use std::path::Path;

use microvm_types::files::LeftOut;
use serde::Serialize;

use crate::error::CliError;

pub(crate) use budget::Budget;
pub(crate) use left_out::tell;
pub(crate) use place::Place;
pub(crate) use pull::{pull, pull_directory, pull_stream};
pub(crate) use push::{push, push_directory, push_stream};

/// Largest `results.json` that is read, in bytes.
const RESULTS_MAX: u64 = 16 << 20;

/// What a copy moved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Moved {
    /// Bytes, the archive's own included where one was used.
    pub(crate) bytes: u64,
    /// SHA-256 of them; none for a file with more than 64 MiB of holes, which are not read, sent or hashed.
    pub(crate) sha256: Option<String>,
    /// What was not copied.
    pub(crate) left_out: LeftOut,
    /// Whether that is all: the agent of a VM that was started by an older version does not tell what it leaves out.
    pub(crate) left_out_is_complete: bool,
}

impl Default for Moved {
    /// Nothing.
    fn default() -> Self {
        Self { bytes: 0, sha256: None, left_out: LeftOut::default(), left_out_is_complete: true }
    }
}

/// What a copy out of a guest may do here.
#[derive(Debug)]
pub(crate) struct Rules {
    /// How much it may write.
    pub(crate) budget: Budget,
    /// Links that lead elsewhere.
    pub(crate) links: OutsideLinks,
}

/// What becomes of symbolic links that lead out of what is copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub(crate) enum OutsideLinks {
    /// They stay the links they are; nothing is read or written through them
    #[default]
    Keep,
    /// They are left out
    Skip,
}

/// `results.json` of an output directory, parsed; `None` if there is none.
pub(crate) fn results(directory: &Path) -> Result<Option<serde_json::Value>, CliError> {
    let path = directory.join("results.json");
    let metadata = match std::fs::symlink_metadata(&path) {
        Ok(metadata) if metadata.is_file() => metadata,
        // Not a plain file: whatever the guest made of it, it is not results.
        _ => return Ok(None),
    };
    if metadata.len() > RESULTS_MAX {
        let detail =
            format!("results.json has {} bytes, at most {RESULTS_MAX} are read: write less", metadata.len());
        return Err(CliError::invalid("results_invalid", detail));
    }
    let text = std::fs::read(&path).map_err(|error| CliError::file("reading", &path, &error))?;
    serde_json::from_slice(&text)
        .map(Some)
        .map_err(|error| CliError::invalid("results_invalid", format!("results.json is not JSON: {error}")))
}
