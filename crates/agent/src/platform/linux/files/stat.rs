//! Descriptions of paths.

use std::fs::{self, Metadata};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::ffi::OsStringExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use microvm_protocol::messages::{EntryKind, FileTime, Reply, Stat};

use super::path::{absolute, failed};
use crate::core::failure::AgentResult;

/// Describes a path without following a symbolic link.
pub(in crate::platform::linux) fn stat(path: &[u8]) -> AgentResult<Reply> {
    let path = absolute(path)?;
    let metadata = fs::symlink_metadata(path).map_err(failed("look at", path))?;
    Ok(Reply::Stat(describe(path, &metadata)))
}

/// The message for what is at `path`.
pub(super) fn describe(path: &Path, metadata: &Metadata) -> Stat {
    let kind = if metadata.is_file() {
        EntryKind::File
    } else if metadata.is_dir() {
        EntryKind::Directory
    } else if metadata.is_symlink() {
        EntryKind::Symlink
    } else {
        EntryKind::Other
    };
    let target = if metadata.is_symlink() { fs::read_link(path).ok() } else { None };
    Stat {
        path: path.as_os_str().as_bytes().to_vec(),
        kind: kind.into(),
        size: metadata.len(),
        mode: metadata.mode() & 0o7777,
        uid: metadata.uid(),
        gid: metadata.gid(),
        modified_ms: metadata.mtime().saturating_mul(1000).saturating_add(metadata.mtime_nsec() / 1_000_000),
        target: target.map(|target| target.into_os_string().into_vec()),
        modified: Some(FileTime {
            seconds: metadata.mtime(),
            nanoseconds: u32::try_from(metadata.mtime_nsec()).unwrap_or(0),
        }),
        // `st_blocks` counts 512 bytes (stat(2)), whatever the file system's blocks are.
        allocated: Some(metadata.blocks().saturating_mul(512)),
    }
}
