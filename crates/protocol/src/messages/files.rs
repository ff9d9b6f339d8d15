//! Files, directories, archives.

/// Part of a file.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct ReadFile {
    /// Its path.
    #[prost(bytes = "vec", tag = "1")]
    pub path: Vec<u8>,
    /// First byte.
    #[prost(uint64, tag = "2")]
    pub offset: u64,
    /// At most so many bytes; absent: to the end.
    #[prost(uint64, optional, tag = "3")]
    pub length: Option<u64>,
}

/// A file to write.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct WriteFile {
    /// Its path.
    #[prost(bytes = "vec", tag = "1")]
    pub path: Vec<u8>,
    /// Permission bits; absent: those of the file it replaces, else 0644.
    #[prost(uint32, optional, tag = "2")]
    pub mode: Option<u32>,
    /// Owner; absent: that of the file it replaces, else root.
    #[prost(uint32, optional, tag = "3")]
    pub uid: Option<u32>,
    /// Group; goes with the owner.
    #[prost(uint32, optional, tag = "4")]
    pub gid: Option<u32>,
    /// Make missing parents.
    #[prost(bool, tag = "5")]
    pub create_parents: bool,
    /// Time of its content; absent: now. An agent that does not know this field takes the time of the copy.
    #[prost(message, optional, tag = "6")]
    pub modified: Option<FileTime>,
    /// Who gets it, as `user[:group]` in names or numbers of the guest; empty: the owner of the file it replaces, else the
    /// default user of commands. Instead of `uid` and `gid`; needs [`super::features::OWNERS`].
    #[prost(string, optional, tag = "7")]
    pub owner: Option<String>,
}

/// A time of a file.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct FileTime {
    /// Whole seconds since 1970-01-01T00:00:00Z, rounded down.
    #[prost(sint64, tag = "1")]
    pub seconds: i64,
    /// Nanoseconds after that second, 0 to 999,999,999.
    #[prost(uint32, tag = "2")]
    pub nanoseconds: u32,
}

/// Kinds of directory entries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum EntryKind {
    /// Device, FIFO, socket.
    Other = 0,
    /// Regular file.
    File = 1,
    /// Directory.
    Directory = 2,
    /// Symbolic link.
    Symlink = 3,
}

/// Description of the entry at a path.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Stat {
    /// Absolute path.
    #[prost(bytes = "vec", tag = "1")]
    pub path: Vec<u8>,
    /// What it is.
    #[prost(enumeration = "EntryKind", tag = "2")]
    pub kind: i32,
    /// Size in bytes.
    #[prost(uint64, tag = "3")]
    pub size: u64,
    /// Permission bits.
    #[prost(uint32, tag = "4")]
    pub mode: u32,
    /// Owner.
    #[prost(uint32, tag = "5")]
    pub uid: u32,
    /// Group.
    #[prost(uint32, tag = "6")]
    pub gid: u32,
    /// Last change of content, milliseconds since 1970-01-01T00:00:00Z.
    #[prost(sint64, tag = "7")]
    pub modified_ms: i64,
    /// Where a symbolic link points.
    #[prost(bytes = "vec", optional, tag = "8")]
    pub target: Option<Vec<u8>>,
    /// The exact time of that change; absent from an agent that does not know this field.
    #[prost(message, optional, tag = "9")]
    pub modified: Option<FileTime>,
    /// Bytes of disk that its content takes; less than `size` where it has holes. Absent from older agents.
    #[prost(uint64, optional, tag = "12")]
    pub allocated: Option<u64>,
}

/// Some of many files.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Stats {
    /// The files.
    #[prost(message, repeated, tag = "1")]
    pub entries: Vec<Stat>,
    /// In the last message: there are more than [`MAX_LIST_ENTRIES`].
    #[prost(bool, tag = "2")]
    pub truncated: bool,
    /// In the last message: directories that could not be read.
    #[prost(uint64, tag = "3")]
    pub unreadable: u64,
    /// In the last message: the first of those.
    #[prost(bytes = "vec", optional, tag = "4")]
    pub first_unreadable: Option<Vec<u8>>,
}

/// Entries of a directory.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct List {
    /// Path of the directory.
    #[prost(bytes = "vec", tag = "1")]
    pub path: Vec<u8>,
    /// Levels to go down; 1: its own entries.
    #[prost(uint32, tag = "2")]
    pub depth: u32,
}

/// Most entries a `List` answers with.
pub const MAX_LIST_ENTRIES: usize = 100_000;

/// A new directory.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct MakeDirectory {
    /// Its path.
    #[prost(bytes = "vec", tag = "1")]
    pub path: Vec<u8>,
    /// Permission bits.
    #[prost(uint32, tag = "2")]
    pub mode: u32,
    /// Make missing parents; an existing directory is fine then.
    #[prost(bool, tag = "3")]
    pub parents: bool,
    /// Who gets what is made, as `user[:group]` in names or numbers of the guest; empty: the default user of commands;
    /// absent: root. Needs [`super::features::OWNERS`].
    #[prost(string, optional, tag = "4")]
    pub owner: Option<String>,
}

/// A new name.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Rename {
    /// Old path.
    #[prost(bytes = "vec", tag = "1")]
    pub from: Vec<u8>,
    /// New path.
    #[prost(bytes = "vec", tag = "2")]
    pub to: Vec<u8>,
}

/// Removal.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Remove {
    /// What.
    #[prost(bytes = "vec", tag = "1")]
    pub path: Vec<u8>,
    /// With all below it.
    #[prost(bool, tag = "2")]
    pub recursive: bool,
}

/// Changes below a path.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Watch {
    /// The path.
    #[prost(bytes = "vec", tag = "1")]
    pub path: Vec<u8>,
    /// With all directories below it.
    #[prost(bool, tag = "2")]
    pub recursive: bool,
}

/// Kinds of changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum Change {
    /// Events were lost.
    Overflow = 0,
    /// Appeared.
    Created = 1,
    /// New content.
    Modified = 2,
    /// New permissions, owner or times.
    Attributes = 3,
    /// Was removed.
    Removed = 4,
    /// Was moved away.
    Renamed = 5,
}

/// A change.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Changed {
    /// Path of what changed.
    #[prost(bytes = "vec", tag = "1")]
    pub path: Vec<u8>,
    /// What happened.
    #[prost(enumeration = "Change", tag = "2")]
    pub change: i32,
}

/// A tar stream to unpack.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct PushArchive {
    /// The directory; made if missing.
    #[prost(bytes = "vec", tag = "1")]
    pub path: Vec<u8>,
    /// Who gets all of it, as `user[:group]` in names or numbers of the guest; empty: the default user of commands gets what
    /// is made, and directories that are there keep their owner; absent: as the archive says. Needs
    /// [`super::features::OWNERS`].
    #[prost(string, optional, tag = "2")]
    pub owner: Option<String>,
}

/// An archive to pack.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct PullArchive {
    /// File or directory.
    #[prost(bytes = "vec", tag = "1")]
    pub path: Vec<u8>,
    /// Absolute paths left out with all below them.
    #[prost(bytes = "vec", repeated, tag = "2")]
    pub exclude: Vec<Vec<u8>>,
    /// Say what was left out: a `Packed` follows the archive. An agent that does not know this field sends none.
    #[prost(bool, tag = "3")]
    pub report: bool,
    /// Files with holes as sparse entries (GNU format 1.0 in pax); an agent that does not know this field packs zeros.
    #[prost(bool, tag = "4")]
    pub holes: bool,
}

/// Something that a transfer did not take over.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct LeftOutEntry {
    /// Its path: absolute where it is packed, as in the archive where it is unpacked; at most 1024 bytes of it.
    #[prost(bytes = "vec", tag = "1")]
    pub path: Vec<u8>,
    /// Why, in words.
    #[prost(string, tag = "2")]
    pub reason: String,
}

/// Most entries that a [`LeftOut`] names; the rest is counted.
pub const MAX_LEFT_OUT: usize = 20;

/// Entries that a transfer left out.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct LeftOut {
    /// How many.
    #[prost(uint64, tag = "1")]
    pub count: u64,
    /// The first of them.
    #[prost(message, repeated, tag = "2")]
    pub entries: Vec<LeftOutEntry>,
}

impl LeftOut {
    /// Counts an entry, and names it if it is one of the first.
    pub fn add(&mut self, path: &[u8], reason: impl Into<String>) {
        self.count += 1;
        if self.entries.len() < MAX_LEFT_OUT {
            let path = path[..path.len().min(1024)].to_vec();
            self.entries.push(LeftOutEntry { path, reason: reason.into() });
        }
    }
}

/// An archive was packed; nothing of it follows.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Packed {
    /// Entries that are not in it.
    #[prost(message, optional, tag = "1")]
    pub left_out: Option<LeftOut>,
}

/// A transfer to the guest is complete.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Written {
    /// Bytes that came, zero runs counted in full.
    #[prost(uint64, tag = "1")]
    pub bytes: u64,
    /// Entries of an archive that were not taken over; absent: none.
    #[prost(message, optional, tag = "2")]
    pub left_out: Option<LeftOut>,
}

/// A hash.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Hash {
    /// 32 bytes of SHA-256.
    #[prost(bytes = "vec", tag = "1")]
    pub sha256: Vec<u8>,
}
