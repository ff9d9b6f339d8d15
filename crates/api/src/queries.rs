//! Parameters in queries, one struct for each set of them. How they stand in a URL says [`crate::query`].

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::query::{FilterPair, FilterState, GuestPath, Mode, ModifiedTime, Owner, RawBytes};

/// No parameters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
pub struct NoQuery {}

/// VMs to be listed; all by default.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
pub struct ListVms {
    /// A label that they have, as `KEY=VALUE`; may be given several times.
    #[serde(default)]
    pub label: Vec<FilterPair>,
    /// Metadata that they have, as `KEY=VALUE`; may be given several times.
    #[serde(default)]
    pub metadata: Vec<FilterPair>,
    /// A state that they may be in; may be given several times.
    #[serde(default)]
    pub state: Vec<FilterState>,
    /// The same as `state`, for clients that send this name.
    #[serde(default)]
    pub status: Vec<FilterState>,
    /// Text that their name contains.
    #[serde(default)]
    pub name: Option<RawBytes>,
    /// List VMs that wait in pools too.
    #[serde(default)]
    #[schema(default = false)]
    pub waiting: bool,
}

/// Options of a deletion.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
pub struct DeleteVm {
    /// Delete it also if disk files of yours cannot take what it wrote to them since it was branched (their folder or file
    /// system is gone, or they were changed): that is lost.
    #[serde(default)]
    #[schema(default = false)]
    pub forget_disks: bool,
}

/// Options of a start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
pub struct StartVm {
    /// Boot it from its disk, also a hibernated one: what was in its memory is given up.
    #[serde(default)]
    #[schema(default = false)]
    pub cold: bool,
}

/// States that are waited for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct WaitForVm {
    /// A state; may be given several times. None at all: `stopped`, `failed`, and deleted VMs.
    #[serde(default)]
    pub state: Vec<FilterState>,
    /// Wait for its deletion too.
    #[serde(default)]
    #[schema(default = false)]
    pub gone: bool,
    /// Most seconds to wait, 1 to 3000.
    #[serde(default = "five_minutes")]
    #[schema(default = 300, minimum = 1, maximum = 3000)]
    pub timeout_seconds: u64,
}

const fn five_minutes() -> u64 {
    300
}

/// Events that are followed; all by default.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
pub struct FollowEvents {
    /// Id or name of a VM; may be given several times.
    #[serde(default)]
    pub vm: Vec<RawBytes>,
    /// A state that the VM is in after the event; may be given several times.
    #[serde(default)]
    pub state: Vec<FilterState>,
}

/// Part of a console.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ConsolePart {
    /// Most bytes; 16 MiB at most.
    #[serde(default = "mebibyte")]
    #[schema(default = 1_048_576)]
    pub limit: usize,
    /// Offset of the first byte, counted over all that the VM ever wrote there; absent: the newest bytes.
    pub offset: Option<u64>,
}

const fn mebibyte() -> usize {
    1 << 20
}

/// The terminal of a shell.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
pub struct OpenShell {
    /// Columns of the terminal, at least 1; 80 if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub columns: Option<u16>,
    /// Rows of the terminal, at least 1; 24 if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rows: Option<u16>,
    /// Kind of the terminal, as `TERM` names it; `xterm-256color` if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub term: Option<String>,
    /// User name or id, optionally `user:group`; that of the image if absent, else root.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Working directory; that of the image if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub working_dir: Option<String>,
}

/// A path in a guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AtPath {
    /// Absolute path in the guest.
    pub path: GuestPath,
}

/// Part of a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ReadFile {
    /// Absolute path in the guest.
    pub path: GuestPath,
    /// Offset of the first byte.
    #[serde(default)]
    #[schema(default = 0)]
    pub offset: u64,
    /// Most bytes; absent: to the end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub length: Option<u64>,
}

/// A file to be written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct WriteFile {
    /// Absolute path in the guest.
    pub path: GuestPath,
    /// Permission bits, octal; absent: 644, or those of the file that is replaced.
    pub mode: Option<Mode>,
    /// Who gets it, as `USER[:GROUP]`; empty: the user whom commands run as; absent: the owner of the file that is
    /// replaced, or root.
    pub owner: Option<Owner>,
    /// Make missing parent directories.
    #[serde(default)]
    #[schema(default = false)]
    pub parents: bool,
    /// When its content was last changed, in seconds since 1970; absent: now.
    pub modified: Option<ModifiedTime>,
}

/// The path that is removed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RemoveFile {
    /// Absolute path in the guest.
    pub path: GuestPath,
    /// Remove a directory with all that is below it.
    #[serde(default)]
    #[schema(default = false)]
    pub recursive: bool,
}

/// A directory to be listed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ListFiles {
    /// Absolute path in the guest.
    pub path: GuestPath,
    /// Levels below it, 1 to 256.
    #[serde(default = "one")]
    #[schema(default = 1, minimum = 1, maximum = 256)]
    pub depth: u32,
}

const fn one() -> u32 {
    1
}

/// A directory to be made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MakeDirectory {
    /// Absolute path in the guest.
    pub path: GuestPath,
    /// Permission bits, octal; absent: 755.
    pub mode: Option<Mode>,
    /// Make missing parent directories.
    #[serde(default)]
    #[schema(default = false)]
    pub parents: bool,
    /// Who gets it, as `USER[:GROUP]`; empty: the user whom commands run as; absent: root.
    pub owner: Option<Owner>,
}

/// A file that gets another path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RenameFile {
    /// Absolute path in the guest.
    pub from: GuestPath,
    /// Its new absolute path.
    pub to: GuestPath,
}

/// A path to be watched.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct WatchFiles {
    /// Absolute path in the guest.
    pub path: GuestPath,
    /// Watch all directories below it too.
    #[serde(default)]
    #[schema(default = false)]
    pub recursive: bool,
}

/// The path that is packed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PullArchive {
    /// Absolute path in the guest.
    pub path: GuestPath,
    /// Name that is left out; may be given several times.
    #[serde(default)]
    pub exclude: Vec<RawBytes>,
    /// Pack files with holes as sparse entries of GNU's format 1.0.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    #[schema(default = false)]
    pub holes: bool,
}

/// Where a tar stream is unpacked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PushArchive {
    /// Absolute path of a directory in the guest.
    pub path: GuestPath,
    /// Who gets what is unpacked, as `USER[:GROUP]`; empty: the user whom commands run as; absent: as the stream says.
    pub owner: Option<Owner>,
}

/// Snapshots to be listed.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
pub struct ListSnapshots {
    /// Id or name of the VM they were taken of, which may be gone; absent: all.
    pub vm: Option<RawBytes>,
    /// List golden snapshots of templates too.
    #[serde(default)]
    #[schema(default = false)]
    pub golden: bool,
}

/// Manner of a snapshot, in place of the body's `full`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
pub struct TakeSnapshot {
    /// `false`: make it whole in itself instead of building on its parent.
    pub incremental: Option<bool>,
}

/// Snapshots to be removed; if none of the first three is given, those older than the server's age for snapshots without a
/// name of their own (30 days).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
pub struct CleanUpSnapshots {
    /// Those older than this many days.
    pub days_old: Option<u64>,
    /// Those older than this many seconds; wins over `days_old`.
    pub older_than_seconds: Option<u64>,
    /// All but this many of each VM, the newest.
    pub keep: Option<usize>,
    /// Also those that somebody gave a name.
    #[serde(default)]
    #[schema(default = false)]
    pub named: bool,
}

/// Options of a removal of a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
pub struct RemoveSnapshot {
    /// Remove those that build on it too.
    #[serde(default)]
    #[schema(default = false)]
    pub cascade: bool,
}
