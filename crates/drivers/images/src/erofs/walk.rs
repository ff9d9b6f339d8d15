//! Walks over a tree, parents first and names in order, with one path in memory at a time: a deep directory with a million files
//! would have a million long ones.

use super::tree::{NodeId, Tree};

/// Names and nodes of a directory that are still to come.
type Entries<'a> = std::vec::IntoIter<(&'a [u8], NodeId)>;

/// A walk.
pub(crate) struct Walk<'a> {
    tree: &'a Tree,
    path: Vec<u8>,
    /// Directories on the way: themselves, the length of their path, and their entries that are still to come.
    open: Vec<(NodeId, usize, Entries<'a>)>,
    begun: bool,
}

/// One entry on the way.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Step<'a> {
    pub(crate) id: NodeId,
    /// Directory that it is in; of the root itself.
    pub(crate) parent: NodeId,
    /// Its last name; empty: the root.
    pub(crate) name: &'a [u8],
}

impl<'a> Walk<'a> {
    pub(crate) const fn new(tree: &'a Tree) -> Self {
        Self { tree, path: Vec::new(), open: Vec::new(), begun: false }
    }

    /// Path of the entry that was stepped to, relative to the root.
    pub(crate) fn path(&self) -> &[u8] {
        &self.path
    }

    /// Steps to the next entry; `None` behind the last one.
    pub(crate) fn step(&mut self) -> Option<Step<'a>> {
        if !self.begun {
            self.begun = true;
            return Some(self.enter(Step { id: 0, parent: 0, name: b"" }));
        }
        loop {
            let (parent, length, entries) = self.open.last_mut()?;
            let (parent, length) = (*parent, *length);
            let Some((name, id)) = entries.next() else {
                self.open.pop();
                continue;
            };
            self.path.truncate(length);
            if length > 0 {
                self.path.push(b'/');
            }
            self.path.extend_from_slice(name);
            return Some(self.enter(Step { id, parent, name }));
        }
    }

    fn enter(&mut self, step: Step<'a>) -> Step<'a> {
        let entries: Vec<_> = self.tree.children(step.id).collect();
        if !entries.is_empty() {
            self.open.push((step.id, self.path.len(), entries.into_iter()));
        }
        step
    }
}
