//! The files of an image as one tar stream, a layer or a root: the same each time.

use std::collections::HashMap;
use std::io::{self, Write};

use microvm_archive::sparse_map::stand_in;
use microvm_durable::cancel::Cancel;
use microvm_durable::error::bad_input;
use microvm_ports::StorageError;
use tar::EntryType;

use super::entry::{self, NewEntry};
use crate::erofs::{FileData, Kind, NodeId, Sequential, SpoolReader, Step, Tree, Walk};
use crate::source::tar_image::Whiteouts;

/// Begins names that mean something is gone, in a layer.
const WHITEOUT: &[u8] = b".wh.";
/// Bytes that are read at once.
const PART: usize = 1 << 18;

/// Reason for which an archive could not be written.
pub(super) enum WriteError {
    /// Files cannot be read, or are none for an archive.
    Storage(StorageError),
    /// The output.
    Out(io::Error),
}

impl From<StorageError> for WriteError {
    fn from(error: StorageError) -> Self {
        Self::Storage(error)
    }
}

impl From<io::Error> for WriteError {
    fn from(error: io::Error) -> Self {
        Self::Out(error)
    }
}

/// Writes everything of a tree, parents first. `what` names it in errors. With [`Whiteouts::Oci`] the stream is a layer.
///
/// # Errors
/// [`StorageError::BadInput`] if a file has a name that means something else in a layer.
pub(super) fn write(
    what: &str,
    tree: &Tree,
    contents: &SpoolReader,
    whiteouts: Whiteouts,
    cancel: &Cancel,
    out: &mut impl Write,
) -> Result<(), WriteError> {
    let mut names = Names::of(tree);
    let mut walk = Walk::new(tree);
    while let Some(step) = walk.step() {
        cancel.check()?;
        let (node, path) = (tree.node(step.id), walk.path());
        if whiteouts == Whiteouts::Oci {
            refuse_whiteout(what, step.name, path)?;
        }
        // The root is `./`: readers know it by that. Names of directories end with a slash.
        let mut name = if path.is_empty() { b".".to_vec() } else { path.to_vec() };
        if matches!(node.kind, Kind::Directory(_)) {
            name.push(b'/');
        }
        let first = names.first(tree, &step);
        let new = NewEntry {
            name: &name,
            link: b"",
            kind: EntryType::Regular,
            attributes: &node.attributes,
            device: (0, 0),
            size: 0,
            records: Vec::new(),
        };
        if let Some(first) = first {
            entry::begin(out, &NewEntry { kind: EntryType::Link, link: &first, ..new })?;
            continue;
        }
        match &node.kind {
            Kind::Directory(_) => entry::begin(out, &NewEntry { kind: EntryType::Directory, ..new })?,
            Kind::File(data) => file(contents, data, whiteouts, new, cancel, out)?,
            Kind::Symlink(target) => {
                entry::begin(out, &NewEntry { link: target, kind: EntryType::Symlink, ..new })?;
            }
            Kind::CharacterDevice(major, minor) => {
                entry::begin(out, &NewEntry { kind: EntryType::Char, device: (*major, *minor), ..new })?;
            }
            Kind::BlockDevice(major, minor) => {
                entry::begin(out, &NewEntry { kind: EntryType::Block, device: (*major, *minor), ..new })?;
            }
            Kind::Fifo => entry::begin(out, &NewEntry { kind: EntryType::Fifo, ..new })?,
        }
    }
    Ok(entry::end(out)?)
}

fn refuse_whiteout(what: &str, name: &[u8], path: &[u8]) -> Result<(), StorageError> {
    if !name.starts_with(WHITEOUT) {
        return Ok(());
    }
    let shown = String::from_utf8_lossy(path).escape_debug().to_string();
    Err(bad_input(
        what,
        format!("it has a file `{shown}`: in a layer that name means that another is removed"),
    ))
}

fn file(
    contents: &SpoolReader,
    data: &FileData,
    whiteouts: Whiteouts,
    new: NewEntry<'_>,
    cancel: &Cancel,
    out: &mut impl Write,
) -> Result<(), WriteError> {
    let mut content = Sequential::new(contents, data);
    // Layers have no maps: docker and podman take them in, and cannot put such a layer together again (tar-split).
    let Some(map) = data.map().filter(|_| whiteouts != Whiteouts::Oci) else {
        entry::begin(out, &NewEntry { size: data.size, ..new })?;
        copy(&mut content, data.size, cancel, out)?;
        return Ok(entry::pad(out, data.size)?);
    };
    let head = map.encode();
    let size = head.len() as u64 + map.stored();
    let records = map.records(new.name).map(|(key, value)| (key.as_bytes().to_vec(), value)).to_vec();
    entry::begin(out, &NewEntry { name: &stand_in(new.name), size, records, ..new })?;
    out.write_all(&head)?;
    for segment in map.segments() {
        content.skip_to(segment.offset);
        copy(&mut content, segment.length, cancel, out)?;
    }
    Ok(entry::pad(out, size)?)
}

fn copy(
    content: &mut Sequential<'_>,
    mut left: u64,
    cancel: &Cancel,
    out: &mut impl Write,
) -> Result<(), WriteError> {
    let mut buffer = vec![0; usize::try_from(left).unwrap_or(PART).min(PART)];
    while left > 0 {
        cancel.check()?;
        let count = usize::try_from(left).unwrap_or(PART).min(buffer.len());
        content.read(&mut buffer[..count])?;
        out.write_all(&buffer[..count])?;
        left -= count as u64;
    }
    Ok(())
}

/// First names of files that have several.
struct Names<'a> {
    /// How often each node is named.
    counts: Vec<u32>,
    /// Places of directories, and the first ones of files with several names. Paths are put together when they are needed: a
    /// million long ones would not fit into memory.
    places: HashMap<NodeId, (NodeId, &'a [u8])>,
}

impl<'a> Names<'a> {
    fn of(tree: &Tree) -> Self {
        let mut counts = vec![0; tree.len()];
        let mut pending: Vec<NodeId> = vec![0];
        while let Some(id) = pending.pop() {
            for (_, child) in tree.children(id) {
                counts[child as usize] += 1;
                if matches!(tree.node(child).kind, Kind::Directory(_)) {
                    pending.push(child);
                }
            }
        }
        Self { counts, places: HashMap::new() }
    }

    /// The path under which a file was written before.
    fn first(&mut self, tree: &Tree, step: &Step<'a>) -> Option<Vec<u8>> {
        let is_directory = matches!(tree.node(step.id).kind, Kind::Directory(_));
        if !is_directory && self.counts[step.id as usize] < 2 {
            return None;
        }
        let known = self.places.contains_key(&step.id);
        if !known {
            self.places.insert(step.id, (step.parent, step.name));
            return None;
        }
        let (mut parts, mut at) = (Vec::new(), step.id);
        while at != 0 {
            let (parent, name) = self.places.get(&at)?;
            parts.push(*name);
            at = *parent;
        }
        parts.reverse();
        Some(parts.join(&b'/'))
    }
}
