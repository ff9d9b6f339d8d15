//! Files in a guest, as the file operations report them.

use serde::{Deserialize, Serialize};

pub use crate::file_time::{FileTime, FileTimeError};

/// Kind of a directory entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum FileKind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link (reported as itself, never followed).
    Symlink,
    /// A device node, FIFO or socket.
    Other,
}

/// What `stat` tells about a path in a guest.
///
/// Guest paths are bytes. In JSON a path that is not UTF-8 is shown with replacement characters in `path`, and
/// `path_bytes` holds the exact bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct FileStat {
    /// Absolute path, lossy if it is not UTF-8.
    pub path: String,
    /// The exact bytes of the path, only where it is not UTF-8.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path_bytes: Option<Vec<u8>>,
    /// What it is.
    pub kind: FileKind,
    /// Size in bytes.
    pub size: u64,
    /// Permission bits (0 to 0o7777).
    pub mode: u32,
    /// Numeric owner.
    pub uid: u32,
    /// Numeric group.
    pub gid: u32,
    /// Last change of content, in milliseconds since 1970-01-01T00:00:00Z by the guest's clock.
    pub modified_ms: i64,
    /// Nanoseconds of that time after its whole second (0 to 999,999,999); missing where the VM's agent tells milliseconds
    /// only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub modified_nanoseconds: Option<u32>,
    /// Bytes that its content takes on the guest's disk; less than `size` where it has holes. Absent from agents that are
    /// older than this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allocated: Option<u64>,
    /// Where a symbolic link points, lossy if it is not UTF-8.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// The exact bytes of `target`, only where it is not UTF-8.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_bytes: Option<Vec<u8>>,
}

/// Entries below a directory of a guest, and what is missing among them.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct FileList {
    /// The entries, level by level.
    pub entries: Vec<FileStat>,
    /// Whether there are more: a list has at most 100,000.
    #[serde(default)]
    pub truncated: bool,
    /// Directories below that could not be read: what is in them is missing.
    #[serde(default)]
    pub unreadable: u64,
    /// The first of those, lossy if it is not UTF-8.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_unreadable: Option<String>,
}

impl FileStat {
    /// When the content was last changed, as exactly as the guest told it.
    #[must_use]
    pub fn modified(&self) -> FileTime {
        let rest = u32::try_from(self.modified_ms.rem_euclid(1000) * 1_000_000).unwrap_or(0);
        FileTime::new(self.modified_ms.div_euclid(1000), self.modified_nanoseconds.unwrap_or(rest))
    }
}

/// Who gets what is written in a guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FileOwner {
    /// The user whom commands run as if they name none. What is there already keeps its owner.
    Default,
    /// `user[:group]`, in names or numbers of the guest.
    Named(String),
}

impl FileOwner {
    /// From its text: nothing, or `user[:group]`.
    #[must_use]
    pub fn from_text(text: &str) -> Self {
        if text.is_empty() { Self::Default } else { Self::Named(text.to_owned()) }
    }

    /// Its text.
    #[must_use]
    pub fn text(&self) -> &str {
        match self {
            Self::Default => "",
            Self::Named(name) => name,
        }
    }

    /// User and group, where both are numbers: these need nobody to look them up.
    #[must_use]
    pub fn numbers(&self) -> Option<(u32, u32)> {
        let (uid, gid) = self.text().split_once(':')?;
        Some((uid.parse().ok()?, gid.parse().ok()?))
    }
}

/// How a file is written in a guest.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct WriteOptions {
    /// Permission bits of a new file; default 0o644, or those of the file that is replaced.
    pub mode: Option<u32>,
    /// Who gets it; default: the owner of the file that is replaced, or root.
    pub owner: Option<FileOwner>,
    /// Make missing parent directories.
    pub create_parents: bool,
    /// When its content was last changed; default: now.
    pub modified: Option<FileTime>,
}

/// What a completed transfer moved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct TransferSummary {
    /// Bytes moved.
    pub bytes: u64,
    /// SHA-256 of those bytes in lower-case hexadecimal, computed on the host over what crossed the channel.
    pub sha256: String,
    /// Entries of an archive that the guest could not make; the rest was unpacked.
    #[serde(default)]
    pub left_out: LeftOut,
}

/// Most entries that a [`LeftOut`] names; the rest is counted.
pub const MAX_LEFT_OUT: usize = 20;

/// What a transfer did not take over.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct LeftOut {
    /// How many entries.
    pub count: u64,
    /// The first of them, at most 20.
    pub entries: Vec<LeftOutEntry>,
}

/// One thing that a transfer did not take over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct LeftOutEntry {
    /// Its path, lossy if it is not UTF-8: in the guest, on the host, or in the archive, where it comes from.
    pub path: String,
    /// Why, in words.
    pub reason: String,
}

impl LeftOut {
    /// Counts an entry, and names it if it is one of the first.
    pub fn add(&mut self, path: impl Into<String>, reason: impl Into<String>) {
        self.count = self.count.saturating_add(1);
        if self.entries.len() < MAX_LEFT_OUT {
            self.entries.push(LeftOutEntry { path: path.into(), reason: reason.into() });
        }
    }

    /// Adds what another part of the same transfer left out.
    pub fn merge(&mut self, other: Self) {
        self.count = self.count.saturating_add(other.count);
        let room = MAX_LEFT_OUT.saturating_sub(self.entries.len());
        self.entries.extend(other.entries.into_iter().take(room));
    }
}

/// A change seen by a watch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct WatchEvent {
    /// Path of what changed, absolute, lossy if it is not UTF-8.
    pub path: String,
    /// The exact bytes of the path, only where it is not UTF-8.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path_bytes: Option<Vec<u8>>,
    /// What happened.
    pub change: FileChange,
}

/// Kinds of change a watch reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum FileChange {
    /// Appeared: made or moved here.
    Created,
    /// Its content changed.
    Modified,
    /// Its permissions, owner or times changed.
    Attributes,
    /// Was removed.
    Removed,
    /// Was moved away.
    Renamed,
    /// So much happened that the guest lost count; look at the directory again.
    Overflow,
}
