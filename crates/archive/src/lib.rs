//! Tar archives of strangers: ustar, GNU (long names, sparse files) and pax.
//!
//! ```text
//!  bytes ─▶ ArchiveReader ─▶ Entry { path, owner, mode, time, xattrs, acls, segments } ─▶ image import, guest agent
//!               │ pax::records, Header of the `tar` crate
//!               └─▶ data of the entry, without holes
//!  text of an access control list ◀─▶ Acl ◀─▶ value of `system.posix_acl_access` or `system.posix_acl_default`
//! ```
//!
//! The `tar` crate decodes header fields. The walk from entry to entry is here, because extension headers must be bounded
//! before they are read into memory, pax values may hold line feeds, and sparse files must keep their holes. Not here:
//! creating files, and what an entry may replace or leave.

mod acl;
mod entry;
pub mod pax;
mod reader;
mod sparse;
pub mod sparse_map;
mod stream;

pub use acl::{Acl, AclError, AclKind, Principal, id_of};
pub use entry::Entry;
pub use reader::ArchiveReader;
pub use stream::Limits;
pub use tar::EntryType;
