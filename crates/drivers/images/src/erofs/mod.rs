//! Writes uncompressed EROFS images from a tree in memory, and reads them back into one.
//!
//! Our own, since it needs no root and no mount, a hostile archive never touches a file system of the host, equal input
//! gives equal bytes, and it works beside any version of the distribution's tools.
//!
//! ```text
//!  archive ──▶ Tree (names, modes …) ─┐
//!        └──▶ Spool (file contents) ──┴─▶ Layout (who goes where) ──▶ write (one pass, hashed on the way)
//! ```
//!
//! Parts of the format (kernel `fs/erofs/erofs_fs.h`) that are used: 4 KiB blocks, extended inodes, the layouts `FLAT_PLAIN`,
//! `FLAT_INLINE` (the end of a file beside its inode) and, for files with holes, `CHUNK_BASED`; inline attributes; the
//! checksum of the super block.

mod directory;
mod format;
mod layout;
mod memory;
mod read;
mod sequential;
mod spool;
mod tree;
mod walk;
mod write;
mod xattr;

#[cfg(test)]
mod tests;

pub(crate) use memory::TreeMemory;
pub(crate) use read::read;
pub(crate) use sequential::Sequential;
pub(crate) use spool::{FileData, Spool, SpoolReader};
pub(crate) use tree::{Attributes, Kind, NodeId, PathError, Tree};
pub(crate) use walk::{Step, Walk};
pub(crate) use write::{Written, write};
pub(crate) use xattr::{Xattr, is_wanted as is_wanted_xattr, too_large as xattrs_too_large};
