//! Tar streams in and out of a fake guest's files.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path};

use microvm_ports::GuestError;
use microvm_types::ErrorKind;
use microvm_types::files::{FileTime, LeftOut};
use tar::{Archive, Builder, Entry, EntryType, Header};

use crate::guest::tree::{Body, Node, Parts, Tree, join, node, refused, show};

fn bad(detail: impl std::fmt::Display) -> GuestError {
    refused(ErrorKind::Invalid, format!("the archive cannot be used: {detail}"))
}

/// Unpacks below `path`; returns what was left out. Nothing is changed if any entry is refused.
pub(crate) fn unpack(
    tree: &mut Tree,
    path: &[u8],
    given: Option<(u32, u32)>,
    data: &[u8],
) -> Result<LeftOut, GuestError> {
    let mut left_out = LeftOut::default();
    let root = tree.resolve(path, true)?;
    // All entries are looked at before the first one is put in: a refused archive changes nothing.
    let mut planned: Vec<(Parts, Node)> = Vec::new();
    for entry in Archive::new(data).entries().map_err(bad)? {
        let mut entry = entry.map_err(bad)?;
        let name = entry.path_bytes().into_owned();
        let mut parts = root.clone();
        for component in Path::new(OsStr::from_bytes(&name)).components() {
            match component {
                Component::Normal(part) => parts.push(part.as_bytes().to_vec()),
                Component::CurDir => {}
                _ => return Err(bad(format!("{} leaves the directory", show(&name)))),
            }
        }
        let exact = exact_time(&mut entry)?;
        let header = entry.header();
        let mode = header.mode().map_err(bad)? & 0o7777;
        let owner = |id: u64| u32::try_from(id).unwrap_or(u32::MAX);
        let in_header = (owner(header.uid().map_err(bad)?), owner(header.gid().map_err(bad)?));
        let owner = given.unwrap_or(in_header);
        let time = (i64::try_from(header.mtime().map_err(bad)?).unwrap_or(0), 0);
        let modified = exact.map_or(time, |time| (time.seconds(), time.nanoseconds()));
        let body = match header.entry_type() {
            EntryType::Directory => Body::Directory(BTreeMap::new()),
            EntryType::Symlink => {
                let target =
                    entry.link_name_bytes().ok_or_else(|| bad("a link without a target"))?.into_owned();
                if leaves(&parts, root.len(), &target) {
                    return Err(bad(format!("the link {} leaves the directory", show(&name))));
                }
                Body::Symlink(target)
            }
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                let mut content = Vec::new();
                entry.read_to_end(&mut content).map_err(bad)?;
                Body::File(content)
            }
            kind @ (EntryType::Char | EntryType::Block | EntryType::Fifo) => {
                let number = |number: std::io::Result<Option<u32>>| number.ok().flatten().unwrap_or(0);
                let (major, minor) = (number(header.device_major()), number(header.device_minor()));
                Body::Special(kind.as_byte(), major, minor)
            }
            _ => {
                left_out.add(show(&name), "entries of its type are not known");
                continue;
            }
        };
        planned.push((parts, Node { owner, modified, ..node(body, mode) }));
    }
    tree.make_all(&root, 0o755, given)?;
    for (parts, node) in planned {
        // A link that came earlier in the archive must not lead a later entry elsewhere.
        let parent = &parts[..parts.len().saturating_sub(1)];
        if parts.len() <= root.len() {
            continue;
        }
        tree.make_all(parent, 0o755, given)?;
        let keep = matches!(node.body, Body::Directory(_)) && tree.get(&parts).is_ok();
        if !keep {
            tree.put(&parts, node)?;
        }
    }
    Ok(left_out)
}

/// The time of an entry from its pax records.
fn exact_time(entry: &mut Entry<'_, impl Read>) -> Result<Option<FileTime>, GuestError> {
    let Some(records) = entry.pax_extensions().map_err(bad)? else { return Ok(None) };
    for record in records {
        let record = record.map_err(bad)?;
        if record.key_bytes() == b"mtime" {
            return record.value().map_err(bad)?.parse().map(Some).map_err(bad);
        }
    }
    Ok(None)
}

/// True if a link at `parts` points out of the first `root` parts.
fn leaves(parts: &[Vec<u8>], root: usize, target: &[u8]) -> bool {
    let mut depth = parts.len().saturating_sub(1);
    if target.first() == Some(&b'/') {
        return true;
    }
    for part in target.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." if depth <= root => return true,
            b".." => depth -= 1,
            _ => depth += 1,
        }
    }
    false
}

/// Packs a file or directory, names relative to the parent of `path`.
pub(crate) fn pack(tree: &Tree, path: &[u8], exclude: &[Vec<u8>]) -> Result<Vec<u8>, GuestError> {
    let above = tree.resolve(path, true)?.len().saturating_sub(1);
    pack_below(tree, path, exclude, above)
}

/// Packs a directory, names relative to it.
pub(crate) fn pack_root(tree: &Tree, path: &[u8]) -> Result<Vec<u8>, GuestError> {
    pack_below(tree, path, &[], tree.resolve(path, true)?.len())
}

/// Packs a root as a layer over an image that has nothing: without files whose names mean in a layer that another one is gone.
pub(crate) fn pack_layer(tree: &Tree) -> Result<(Vec<u8>, LeftOut), GuestError> {
    let (mut left_out, mut marks) = (LeftOut::default(), Vec::new());
    for (parts, _) in tree.walk(&tree.resolve(b"/", true)?, u32::MAX)? {
        if parts.last().is_some_and(|name| name.starts_with(b".wh.")) {
            let path = join(&parts);
            left_out
                .add(String::from_utf8_lossy(&path), "its name says in a layer that another file is gone");
            marks.push(path);
        }
    }
    Ok((pack_below(tree, b"/", &marks, 0)?, left_out))
}

/// Packs a path, names without the first `prefix` parts; what has no other is left out.
fn pack_below(tree: &Tree, path: &[u8], exclude: &[Vec<u8>], prefix: usize) -> Result<Vec<u8>, GuestError> {
    let failed = |error: std::io::Error| refused(ErrorKind::Internal, format!("packing failed: {error}"));
    let top = tree.resolve(path, true)?;
    let mut builder = Builder::new(Vec::new());
    let below = tree.walk(&top, u32::MAX)?;
    for (parts, node) in std::iter::once((top.clone(), tree.get(&top)?)).chain(below) {
        let absolute = join(&parts);
        let under =
            |out: &Vec<u8>| absolute.starts_with(out) && matches!(absolute.get(out.len()), None | Some(b'/'));
        if parts.len() <= prefix || exclude.iter().any(under) {
            continue;
        }
        let relative = join(&parts[prefix..]);
        let name = Path::new(OsStr::from_bytes(&relative[1..]));
        let mut header = Header::new_gnu();
        header.set_mode(node.mode);
        header.set_uid(u64::from(node.owner.0));
        header.set_gid(u64::from(node.owner.1));
        header.set_mtime(u64::try_from(node.modified.0).unwrap_or(0));
        let exact = FileTime::new(node.modified.0, node.modified.1).to_string();
        builder.append_pax_extensions([("mtime", exact.as_bytes())]).map_err(failed)?;
        match &node.body {
            Body::File(data) => {
                header.set_entry_type(EntryType::Regular);
                header.set_size(data.len() as u64);
                builder.append_data(&mut header, name, data.as_slice()).map_err(failed)?;
            }
            Body::Directory(_) => {
                header.set_entry_type(EntryType::Directory);
                header.set_size(0);
                builder.append_data(&mut header, name, std::io::empty()).map_err(failed)?;
            }
            Body::Symlink(target) => {
                header.set_entry_type(EntryType::Symlink);
                header.set_size(0);
                builder.append_link(&mut header, name, OsStr::from_bytes(target)).map_err(failed)?;
            }
            Body::Special(kind, major, minor) => {
                header.set_entry_type(EntryType::new(*kind));
                header.set_size(0);
                header.set_device_major(*major).map_err(failed)?;
                header.set_device_minor(*minor).map_err(failed)?;
                builder.append_data(&mut header, name, std::io::empty()).map_err(failed)?;
            }
        }
    }
    builder.into_inner().map_err(failed)
}
