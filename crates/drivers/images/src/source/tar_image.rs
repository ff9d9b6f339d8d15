//! From tar entries to tree entries; with whiteouts where the archive is a layer of an OCI image.

use std::io::{self, Read};

use microvm_archive::{ArchiveReader, Entry, EntryType, Limits};
use microvm_durable::error::bad_input;
use microvm_ports::StorageError;

use super::builder::{Builder, path_error};
use crate::erofs::{Attributes, Kind, Xattr, is_wanted_xattr};

const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
/// A million segments of a sparse file are 16 MiB; `git archive` writes 52 bytes of global headers.
const LIMITS: Limits = Limits { extension: 1 << 20, globals: 64 << 10, segments: 1 << 20 };
/// Longest link target the kernel follows.
const LINK_MAX: usize = 4095;

/// Meaning of file names that begin with `.wh.`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Whiteouts {
    /// Nothing.
    Plain,
    /// Something of an earlier layer is gone (OCI image specification, "Whiteouts").
    Oci,
    /// Nothing; and directories that are there, also through links, stay as they are (as dpkg does it).
    Package,
}

/// Reads an unpacked tar stream.
pub(crate) const fn read_tar<R: Read>(reader: R) -> ArchiveReader<R> {
    ArchiveReader::new(reader, LIMITS)
}

/// Takes in all entries of an unpacked tar stream, and reads the stream to its end.
pub(crate) fn add_tar(
    builder: &mut Builder,
    what: &str,
    reader: impl Read,
    whiteouts: Whiteouts,
) -> Result<(), StorageError> {
    let cancel = builder.cancel.clone();
    let bad = |error: io::Error| bad_input(what, error.to_string());
    let mut tar = read_tar(cancel.reader(reader));
    if whiteouts != Whiteouts::Oci {
        tar = tar.strict();
    }
    while let Some(entry) = tar.next_entry().map_err(bad)? {
        builder.cancel.check()?;
        if whiteouts == Whiteouts::Oci && apply_whiteout(builder, what, &entry.path)? {
            continue;
        }
        if whiteouts == Whiteouts::Package
            && entry.kind == EntryType::Directory
            && builder.tree.leads_to_directory(&entry.path)
        {
            continue;
        }
        add_entry(builder, what, &mut tar, entry)?;
    }
    tar.drain().map_err(bad)?;
    builder.cancel.check()
}

fn add_entry(
    builder: &mut Builder,
    what: &str,
    data: &mut impl Read,
    entry: Entry,
) -> Result<(), StorageError> {
    let Entry {
        path,
        link,
        kind,
        mode,
        uid,
        gid,
        modified,
        modified_ns,
        device,
        size,
        segments,
        xattrs,
        acls,
    } = entry;
    let kind = match kind {
        EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
            // An entry that will be refused should not first be written to disk.
            builder.tree.find(&path).map_err(|error| path_error(what, error))?;
            Kind::File(builder.file(what, data, size, segments.as_deref())?)
        }
        EntryType::Directory => Kind::Directory(std::collections::BTreeMap::new()),
        EntryType::Link => {
            return builder.tree.hard_link(&path, &link).map_err(|error| path_error(what, error));
        }
        EntryType::Symlink if link.is_empty() || link.len() > LINK_MAX || link.contains(&0) => {
            return Err(bad_input(
                what,
                format!("the link `{}` has no usable target", String::from_utf8_lossy(&path).escape_debug()),
            ));
        }
        EntryType::Symlink => Kind::Symlink(link.into()),
        EntryType::Char => Kind::CharacterDevice(device.0, device.1),
        EntryType::Block => Kind::BlockDevice(device.0, device.1),
        EntryType::Fifo => Kind::Fifo,
        other => {
            let shown = String::from_utf8_lossy(&path).escape_debug().to_string();
            return Err(bad_input(
                what,
                format!("`{shown}` has the unknown type {:?}", char::from(other.as_byte())),
            ));
        }
    };
    let named = xattrs.into_iter().filter(|(name, _)| is_wanted_xattr(name));
    let mut xattrs: Vec<Xattr> = named.map(|(name, value)| Xattr { name, value }).collect();
    builder.hold_acls(&mut xattrs, acls);
    builder.insert(what, &path, Attributes { mode, uid, gid, modified, modified_ns, xattrs }, kind)
}

fn apply_whiteout(builder: &mut Builder, what: &str, path: &[u8]) -> Result<bool, StorageError> {
    let path = path.strip_suffix(b"/").unwrap_or(path);
    let at = path.iter().rposition(|byte| *byte == b'/');
    let (directory, name) = at.map_or((&[][..], path), |at| (&path[..at], &path[at + 1..]));
    let Some(hidden) = name.strip_prefix(WHITEOUT) else { return Ok(false) };
    let result = if name == OPAQUE {
        builder.tree.make_opaque(directory)
    } else if hidden.is_empty() || hidden == b"." || hidden == b".." {
        return Err(bad_input(what, "it has a whiteout of nothing"));
    } else if hidden.starts_with(WHITEOUT) {
        // Bookkeeping of other tools (`.wh..wh.plnk`, `.wh..wh.aufs`): nothing of the image.
        Ok(())
    } else {
        builder.tree.white_out(directory, hidden)
    };
    result.map(|()| true).map_err(|error| path_error(what, error))
}
