//! Specification of a caged process.

use std::collections::BTreeMap;

use camino::Utf8PathBuf;
use serde::{Deserialize, Serialize};

/// A program and the cage around it. Host paths are absolute.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct CageSpec {
    /// The VM it belongs to; names its cgroups.
    pub id: String,
    /// Program on the host; it appears at the same path in the cage.
    pub program: Utf8PathBuf,
    /// Its arguments, without its own name.
    pub arguments: Vec<String>,
    /// Its environment, whole.
    pub environment: BTreeMap<String, String>,
    /// The VM's directory: sockets, logs and the supervisor's notes. It is not shown in the cage, so that a VMM under a
    /// guest's control cannot forge what the server trusts.
    pub directory: Utf8PathBuf,
    /// All files and folders it can see.
    pub mounts: Vec<Mount>,
    /// Folders of users that it may work in. With any, the cage has a `/proc` of its own: a VMM changes modes and attributes
    /// through it.
    #[serde(default)]
    pub folders: Vec<Folder>,
    /// Paths in the cage that are opened read-only even where the program asks for writing. QEMU before 8.2 opens the
    /// file behind a private memory mapping for writing although it never writes to it; the file is shared by all VMs.
    pub read_only_opens: Vec<Utf8PathBuf>,
    /// Files opened for it by the supervisor, with the supervisor's rights.
    pub files: Vec<OpenFile>,
    /// Unix sockets that listen before it starts, so that the server can connect at once.
    pub listeners: Vec<Listener>,
    /// Number of the descriptor its console goes to; the supervisor keeps it in `console.log`, capped.
    pub console_descriptor: i32,
    /// Cap of `console.log` in bytes; twice that is kept at most.
    pub console_cap: u64,
    /// User and group id outside the cage; `None`: those of the server (which is then not root).
    pub user: Option<u32>,
    /// True to set the limits below by cgroups; decided once from [`crate::layers()`], so that a host that offers
    /// them never starts a VMM without.
    pub limits: bool,
    /// Most memory of the process in bytes, page cache of its files included.
    pub memory_limit: u64,
    /// Most tasks (threads and processes).
    pub task_limit: u32,
    /// Most processor time in percent of one processor of the host, 200 being two processors; `None`: no limit. A host without
    /// the controller does not start the process.
    #[serde(default)]
    pub cpu_percent: Option<u32>,
    /// Bytes that a file may have which it writes; `None`: no limit. A disk image must not grow to the end of the host's disk.
    #[serde(default)]
    pub file_limit: Option<u64>,
    /// True if its memory may be of huge pages, where it asks for them.
    pub huge_pages: bool,
    /// True to give it a descriptor by which the server learns what it writes to its memory, where the kernel can.
    pub write_tracking: bool,
}

/// Access to a mounted path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MountAccess {
    /// Reading and, where the file allows it, executing.
    Read,
    /// Reading and writing.
    Write,
    /// Opening as a device.
    Device,
}

/// A host path shown in the cage.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    /// Path on the host.
    pub source: Utf8PathBuf,
    /// Path in the cage.
    pub target: Utf8PathBuf,
    /// Leave it out if it is not there, instead of failing.
    pub optional: bool,
    /// Access to it.
    pub access: MountAccess,
}

/// A user's folder shown in the cage. What its owner may do there, the caged process may do, and what it makes there is the
/// owner's; files of others it meets as a stranger.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Folder {
    /// Path on the host, without symbolic links on the way.
    pub source: Utf8PathBuf,
    /// Path in the cage.
    pub target: Utf8PathBuf,
    /// True if the process may change anything in it.
    pub writable: bool,
}

impl CageSpec {
    /// User and group id inside the cage. Ordinarily no account has it. A VMM that shares folders shows their owner as
    /// root, as whom guests do most of their work; without capabilities this is a number like any other.
    pub(crate) fn inside_id(&self) -> u32 {
        if self.folders.is_empty() { 1_000 } else { 0 }
    }
}

/// A file handed over as a descriptor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenFile {
    /// Path on the host.
    pub path: Utf8PathBuf,
    /// True if it may be written.
    pub writable: bool,
    /// Number of the descriptor.
    pub descriptor: i32,
    /// Owner of the file.
    pub owner: FileOwner,
}

/// Owner of a file that is handed over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FileOwner {
    /// A user's: no symbolic link may lead to it, and it is locked against other VMs.
    User,
    /// The VM's own, in its directory, which nobody else can change; no other VM opens it. It may be handed over more than
    /// once: for writing, and for reading.
    Vm,
}

/// A listening unix socket handed over as a descriptor.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Listener {
    /// File name in the VM's directory.
    pub name: String,
    /// Number of the descriptor.
    pub descriptor: i32,
}
