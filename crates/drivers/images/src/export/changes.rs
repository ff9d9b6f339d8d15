//! Differences between a root and the image below it.

use std::collections::HashSet;

use microvm_durable::cancel::Cancel;
use microvm_durable::error::bad_input;
use microvm_ports::StorageError;
use microvm_ports::storage::ChangedPath;
use microvm_types::image::RootChange::{self, Added, Changed, Deleted};

use crate::erofs::{Kind, NodeId, Tree};

/// Most bytes of memory that the differences take: half a million paths of usual length, and more than anybody reads.
const MEMORY_MAX: usize = 64 << 20;
/// Bytes that a difference takes besides its path, in a list that has doubled just now.
const ENTRY: usize = 2 * size_of::<ChangedPath>();
/// Bytes that a directory takes among those that are told, in a table that has doubled just now.
const TOLD: usize = 4 * size_of::<NodeId>();

/// Every path at which `after`, which began as `before`, differs from it, in order of their bytes. A directory in which something
/// differs has changed; of a directory that is gone, only itself is told. The root itself is not told.
///
/// # Errors
/// [`StorageError::BadInput`] if there are more than fit into memory.
pub(crate) fn between(
    before: &Tree,
    after: &Tree,
    cancel: &Cancel,
) -> Result<Vec<ChangedPath>, StorageError> {
    let mut found = Found::default();
    let mut path = Vec::new();
    let mut open = vec![Open::of((Some(0), 0), before, after, 0)];
    while let Some(here) = open.last_mut() {
        cancel.check()?;
        path.truncate(here.length);
        let Some((name, old, new)) = here.entries.next() else {
            open.pop();
            continue;
        };
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(name);
        let change = match (old, new) {
            (Some(old), Some(new)) => (!is_same(before, old, after, new)).then_some(Changed),
            (None, _) => Some(Added),
            (Some(_), None) => Some(Deleted),
        };
        if let Some(change) = change {
            found.tell(change, &path, &open, new)?;
        }
        if let Some(new) = new
            && matches!(after.node(new).kind, Kind::Directory(_))
        {
            open.push(Open::of((old, new), before, after, path.len()));
        }
    }
    found.changes.sort_by(|one, other| one.bytes().cmp(other.bytes()));
    Ok(found.changes)
}

/// A directory on the way.
struct Open<'a> {
    id: NodeId,
    /// Length of its path.
    length: usize,
    entries: std::vec::IntoIter<(&'a [u8], Option<NodeId>, Option<NodeId>)>,
}

impl<'a> Open<'a> {
    /// A directory of `after`, with all names that it has there and had in `before`.
    fn of((old, new): (Option<NodeId>, NodeId), before: &'a Tree, after: &'a Tree, length: usize) -> Self {
        let mut entries: Vec<_> = after
            .children(new)
            .map(|(name, child)| (name, old.and_then(|old| before.child(old, name)), Some(child)))
            .collect();
        let gone = old.into_iter().flat_map(|old| before.children(old));
        entries.extend(
            gone.filter(|(name, _)| after.child(new, name).is_none())
                .map(|(name, child)| (name, Some(child), None)),
        );
        Self { id: new, length, entries: entries.into_iter() }
    }
}

/// Differences that were found.
#[derive(Default)]
struct Found {
    changes: Vec<ChangedPath>,
    /// Directories of the new tree that are among them.
    told: HashSet<NodeId>,
    bytes: usize,
}

impl Found {
    /// Adds a difference, and the directories that it is in.
    fn tell(
        &mut self,
        change: RootChange,
        path: &[u8],
        open: &[Open<'_>],
        new: Option<NodeId>,
    ) -> Result<(), StorageError> {
        for directory in open {
            // The root has no path.
            if directory.length > 0 && self.told.insert(directory.id) {
                self.add(Changed, &path[..directory.length])?;
            }
        }
        if let Some(new) = new {
            self.told.insert(new);
        }
        self.add(change, path)
    }

    fn add(&mut self, change: RootChange, path: &[u8]) -> Result<(), StorageError> {
        let changed = ChangedPath::new(change, path);
        // Of one that is not UTF-8 both forms are kept, and the one for people may be three times as long.
        let bytes = changed.path_bytes.as_ref().map_or(0, Vec::capacity);
        self.bytes += ENTRY + TOLD + changed.path.capacity() + bytes;
        if self.bytes > MEMORY_MAX {
            return Err(bad_input(
                "the changes",
                "they are more than can be listed: export the VM, and compare its files",
            ));
        }
        self.changes.push(changed);
        Ok(())
    }
}

/// True if two entries are the same file of the image, or the same in all that is known about them.
fn is_same(before: &Tree, old: NodeId, after: &Tree, new: NodeId) -> bool {
    let (old, new) = (before.node(old), after.node(new));
    old.attributes == new.attributes
        && match (&old.kind, &new.kind) {
            (Kind::Directory(_), Kind::Directory(_)) | (Kind::Fifo, Kind::Fifo) => true,
            // Contents of the image are told by their place in it; any other is of the layer.
            (Kind::File(old), Kind::File(new)) => old == new,
            (Kind::Symlink(old), Kind::Symlink(new)) => old == new,
            (Kind::CharacterDevice(a, b), Kind::CharacterDevice(c, d))
            | (Kind::BlockDevice(a, b), Kind::BlockDevice(c, d)) => (a, b) == (c, d),
            _ => false,
        }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_held_is_counted_in_both_of_its_forms() {
        for path in [&[0xff; 4_000][..], &[b'a'; 40]] {
            let mut found = Found::default();
            while found.add(Added, path).is_ok() {}
            let of_one = |changed: &ChangedPath| {
                changed.path.capacity() + changed.path_bytes.as_ref().map_or(0, Vec::capacity)
            };
            let held: usize = found.changes.iter().map(of_one).sum();
            let held = held + found.changes.capacity() * size_of::<ChangedPath>();
            assert!((MEMORY_MAX / 3..=MEMORY_MAX).contains(&held), "{held} bytes");
        }
    }
}
