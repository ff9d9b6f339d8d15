//! From tar entries to tree entries; with whiteouts where the archive is a layer of an OCI image.

use std::io::Read;

use microvm_durable::error::bad_input;
use microvm_ports::StorageError;
use tar::EntryType;

use super::builder::{Builder, path_error};
use super::tar_reader::{TarEntry, TarReader};
use crate::erofs::{Attributes, Kind};

const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
/// Longest link target the kernel follows.
const LINK_MAX: usize = 4095;

/// What file names beginning with `.wh.` mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Whiteouts {
    /// Nothing.
    Plain,
    /// Something of an earlier layer is gone (OCI image specification, "Whiteouts").
    Oci,
}

/// Takes in all entries of an unpacked tar stream, and reads the stream to its end.
pub(crate) fn add_tar(
    builder: &mut Builder,
    what: &str,
    reader: impl Read,
    whiteouts: Whiteouts,
) -> Result<(), StorageError> {
    let cancel = builder.cancel.clone();
    let mut tar = TarReader::new(what, cancel.reader(reader));
    if whiteouts == Whiteouts::Plain {
        tar = tar.strict();
    }
    while let Some(entry) = tar.next_entry()? {
        builder.cancel.check()?;
        if whiteouts == Whiteouts::Oci && apply_whiteout(builder, what, &entry.path)? {
            continue;
        }
        add_entry(builder, what, &mut tar, entry)?;
    }
    tar.drain()?;
    builder.cancel.check()
}

fn add_entry(
    builder: &mut Builder,
    what: &str,
    data: &mut impl Read,
    entry: TarEntry,
) -> Result<(), StorageError> {
    let TarEntry { path, link, kind, mode, uid, gid, modified, modified_ns, device, size, segments, xattrs } =
        entry;
    let kind = match kind {
        EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse if path.ends_with(b"/") => {
            directory()
        }
        EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
            // An entry that will be refused should not first be written to disk.
            builder.tree.find(&path).map_err(|error| path_error(what, error))?;
            Kind::File(builder.file(what, data, size, segments.as_deref())?)
        }
        EntryType::Directory => directory(),
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
    builder.insert(what, &path, Attributes { mode, uid, gid, modified, modified_ns, xattrs }, kind)
}

fn directory() -> Kind {
    Kind::Directory(std::collections::BTreeMap::new())
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
