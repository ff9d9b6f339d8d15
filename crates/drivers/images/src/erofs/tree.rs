//! A file system tree in memory: names and attributes; contents are in the spool.

use std::collections::{BTreeMap, BTreeSet};

use super::memory::{Held, TreeMemory};
use super::spool::FileData;
use super::xattr::{self, Xattr};

/// Index of a node in its tree.
pub(crate) type NodeId = u32;

/// Links followed while a path is resolved; the kernel's own limit.
const LINKS_MAX: u32 = 40;
/// Longest name of one entry (`NAME_MAX`).
const NAME_MAX: usize = 255;
/// Bytes that one name costs in a directory besides its own: its place in the map and its allocation (measured: 45 to 70).
const NAME_COST: usize = 64;
/// Bytes that one extended attribute costs besides its own: two vectors and their allocations.
const XATTR_COST: usize = 96;
/// Longest path (`PATH_MAX`).
const PATH_MAX: usize = 4096;

/// Owner, permissions, times.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Attributes {
    pub(crate) mode: u16,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Seconds since 1970.
    pub(crate) modified: i64,
    pub(crate) modified_ns: u32,
    pub(crate) xattrs: Vec<Xattr>,
}

impl Attributes {
    /// Of root, without times.
    pub(crate) const fn root(mode: u16) -> Self {
        Self { mode, uid: 0, gid: 0, modified: 0, modified_ns: 0, xattrs: Vec::new() }
    }

    /// Bytes of memory that they hold besides themselves.
    fn cost(&self) -> usize {
        self.xattrs.iter().map(|xattr| xattr.name.len() + xattr.value.len() + XATTR_COST).sum()
    }
}

/// Type and content of a node.
#[derive(Debug, Clone)]
pub(crate) enum Kind {
    Directory(BTreeMap<Box<[u8]>, NodeId>),
    File(FileData),
    Symlink(Box<[u8]>),
    CharacterDevice(u32, u32),
    BlockDevice(u32, u32),
    Fifo,
}

/// One inode.
#[derive(Debug, Clone)]
pub(crate) struct Node {
    pub(crate) attributes: Attributes,
    pub(crate) kind: Kind,
    /// The layer that put it there.
    layer: u32,
}

impl Node {
    const fn is_directory(&self) -> bool {
        matches!(self.kind, Kind::Directory(_))
    }
}

/// Reason for which a path cannot be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PathError(pub(crate) String);

/// The tree. Node 0 is the root.
pub(crate) struct Tree {
    nodes: Vec<Node>,
    layer: u32,
    /// Names that this layer gave to nodes of earlier ones, with their directories.
    linked: BTreeSet<(NodeId, Box<[u8]>)>,
    nodes_max: usize,
    /// Memory of nodes, names, link targets and extended attributes. What a later layer replaces stays charged, as its
    /// node stays held.
    memory: Held,
}

/// Splits a path of an archive: leading `/` and `.` are dropped, `..` is refused.
pub(crate) fn components(path: &[u8]) -> Result<Vec<&[u8]>, PathError> {
    let shown = || String::from_utf8_lossy(&path[..path.len().min(200)]).escape_debug().to_string();
    if path.len() > PATH_MAX {
        return Err(PathError(format!(
            "the path `{}…` has {} bytes; at most {PATH_MAX} are possible",
            shown(),
            path.len()
        )));
    }
    if path.contains(&0) {
        return Err(PathError(format!("the path `{}` holds a zero byte", shown())));
    }
    let parts: Vec<&[u8]> =
        path.split(|byte| *byte == b'/').filter(|part| !part.is_empty() && *part != b".").collect();
    // Of the archive's own paths only; in targets of links it is followed, inside of the image.
    if parts.contains(&b"..".as_slice()) {
        return Err(PathError(format!("the path `{}` leaves the image through `..`", shown())));
    }
    if let Some(long) = parts.iter().find(|part| part.len() > NAME_MAX) {
        return Err(PathError(format!(
            "a name in the path `{}` has {} bytes; at most {NAME_MAX} are possible",
            shown(),
            long.len()
        )));
    }
    Ok(parts)
}

impl Tree {
    /// An empty tree that takes at most so many nodes, and at most `memory_max` bytes of what is left of `memory`.
    pub(crate) fn new(nodes_max: usize, memory_max: usize, memory: TreeMemory) -> Self {
        let root =
            Node { attributes: Attributes::root(0o755), kind: Kind::Directory(BTreeMap::new()), layer: 0 };
        Self {
            nodes: vec![root],
            layer: 0,
            linked: BTreeSet::new(),
            nodes_max,
            memory: Held::new(memory, memory_max),
        }
    }

    /// A node.
    pub(crate) fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id as usize]
    }

    /// Owner, permissions and times of a node, to be changed. What they hold besides themselves must not grow.
    pub(crate) fn attributes_mut(&mut self, id: NodeId) -> &mut Attributes {
        &mut self.nodes[id as usize].attributes
    }

    /// Entries of a directory; empty for anything else.
    pub(crate) fn children(&self, id: NodeId) -> impl Iterator<Item = (&[u8], NodeId)> {
        let entries = match &self.node(id).kind {
            Kind::Directory(entries) => Some(entries),
            _ => None,
        };
        entries.into_iter().flatten().map(|(name, id)| (&**name, *id))
    }

    /// Nodes made so far, live or not.
    pub(crate) fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Begins the next layer: everything added from here on belongs to it.
    pub(crate) fn next_layer(&mut self) {
        self.layer += 1;
        self.linked.clear();
    }

    /// Puts a node at a path; parents are made, what was there is replaced. A directory over a directory keeps its entries.
    pub(crate) fn insert(
        &mut self,
        path: &[u8],
        attributes: Attributes,
        kind: Kind,
    ) -> Result<(), PathError> {
        if let Some(problem) = xattr::too_large(&attributes.xattrs) {
            let shown = String::from_utf8_lossy(path).escape_debug().to_string();
            return Err(PathError(format!("`{shown}` cannot be kept: {problem}")));
        }
        let parts = components(path)?;
        let layer = self.layer;
        let Some((name, parents)) = parts.split_last() else {
            if !matches!(kind, Kind::Directory(_)) {
                return Err(PathError("the root of the image is not a directory".into()));
            }
            self.memory.charge(attributes.cost())?;
            self.nodes[0].attributes = attributes;
            self.nodes[0].layer = layer;
            return Ok(());
        };
        let parent = self.make_parents(parents)?;
        if let (Some(existing), Kind::Directory(_)) = (self.child(parent, name), &kind)
            && self.node(existing).is_directory()
        {
            self.memory.charge(attributes.cost())?;
            let node = &mut self.nodes[existing as usize];
            node.attributes = attributes;
            node.layer = layer;
            return Ok(());
        }
        let id = self.add(Node { attributes, kind, layer })?;
        self.link(parent, name, id)
    }

    /// Gives the node at `target` a second name.
    pub(crate) fn hard_link(&mut self, path: &[u8], target: &[u8]) -> Result<(), PathError> {
        let shown = || String::from_utf8_lossy(target).escape_debug().to_string();
        let id = self.find(target)?.ok_or_else(|| {
            PathError(format!("a hard link points to `{}`, which is not in the archive before it", shown()))
        })?;
        if self.node(id).is_directory() {
            return Err(PathError(format!("a hard link points to the directory `{}`", shown())));
        }
        let parts = components(path)?;
        let (name, parents) =
            parts.split_last().ok_or_else(|| PathError("a hard link has no name".into()))?;
        let parent = self.make_parents(parents)?;
        self.link(parent, name, id)?;
        // The node is of an earlier layer, so nothing else shows that this layer brought the name.
        if self.node(id).layer != self.layer {
            self.memory.charge(name.len() + NAME_COST)?;
            self.linked.insert((parent, (*name).into()));
        }
        Ok(())
    }

    /// True if an entry came with this layer: its node did, or its name as a hard link.
    fn is_of_this_layer(&self, directory: NodeId, name: &[u8], id: NodeId) -> bool {
        self.node(id).layer == self.layer || self.linked.contains(&(directory, name.into()))
    }

    /// Applies a whiteout: removes an entry that an earlier layer put there.
    pub(crate) fn white_out(&mut self, directory: &[u8], name: &[u8]) -> Result<(), PathError> {
        let Some(parent) = self.find(directory)? else { return Ok(()) };
        if let Some(id) = self.child(parent, name) {
            if self.node(id).is_directory() {
                self.prune(id);
            }
            // What this layer itself put there stays, whichever of the two comes first in it.
            let keep = self.is_of_this_layer(parent, name, id) || self.children(id).next().is_some();
            if !keep {
                self.unlink(parent, name);
            }
        }
        Ok(())
    }

    /// Applies an opaque whiteout: empties a directory of what earlier layers put there.
    pub(crate) fn make_opaque(&mut self, directory: &[u8]) -> Result<(), PathError> {
        if let Some(id) = self.find(directory)? {
            self.prune(id);
        }
        Ok(())
    }

    /// The node at a path, the last part not followed if it is a link.
    pub(crate) fn find(&self, path: &[u8]) -> Result<Option<NodeId>, PathError> {
        let parts = components(path)?;
        let Some((name, parents)) = parts.split_last() else { return Ok(Some(0)) };
        Ok(self.resolve(parents)?.ok().and_then(|parent| self.child(parent, name)))
    }

    /// True if a path names a directory itself, not a link to one.
    pub(crate) fn is_directory(&self, path: &[u8]) -> bool {
        matches!(self.find(path), Ok(Some(id)) if self.node(id).is_directory())
    }

    /// True if a path names a directory, links on the way and at its end followed.
    pub(crate) fn leads_to_directory(&self, path: &[u8]) -> bool {
        components(path).is_ok_and(|parts| matches!(self.resolve(&parts), Ok(Ok(_))))
    }

    /// The entry of a directory with this name.
    pub(crate) fn child(&self, parent: NodeId, name: &[u8]) -> Option<NodeId> {
        match &self.node(parent).kind {
            Kind::Directory(entries) => entries.get(name).copied(),
            _ => None,
        }
    }

    fn link(&mut self, parent: NodeId, name: &[u8], id: NodeId) -> Result<(), PathError> {
        self.memory.charge(name.len() + NAME_COST)?;
        if let Kind::Directory(entries) = &mut self.nodes[parent as usize].kind {
            entries.insert(name.into(), id);
        }
        Ok(())
    }

    fn unlink(&mut self, parent: NodeId, name: &[u8]) {
        if let Kind::Directory(entries) = &mut self.nodes[parent as usize].kind {
            entries.remove(name);
        }
    }

    fn add(&mut self, node: Node) -> Result<NodeId, PathError> {
        let limit = self.nodes_max;
        if self.nodes.len() >= limit {
            return Err(PathError(format!("it has more than {limit} entries")));
        }
        let target = match &node.kind {
            Kind::Symlink(target) => target.len(),
            Kind::File(data) => data.memory(),
            _ => 0,
        };
        // A vector that grows may have twice the room it needs.
        self.memory.charge(2 * size_of::<Node>() + target + node.attributes.cost())?;
        let id =
            NodeId::try_from(self.nodes.len()).map_err(|_| PathError("it has too many entries".into()))?;
        self.nodes.push(node);
        Ok(id)
    }

    /// Walks to a directory, following links inside the tree. `Err` inside: the directory reached, and the parts that are
    /// missing below it.
    #[allow(clippy::type_complexity, reason = "used twice, right below")]
    fn resolve(&self, parts: &[&[u8]]) -> Result<Result<NodeId, (NodeId, Vec<Vec<u8>>)>, PathError> {
        let mut trail: Vec<NodeId> = vec![0];
        let mut pending: Vec<Vec<u8>> = parts.iter().rev().map(|part| part.to_vec()).collect();
        let mut links = 0;
        while let Some(part) = pending.pop() {
            if part == b".." {
                // The parent of the root is the root, as everywhere.
                if trail.len() > 1 {
                    trail.pop();
                }
                continue;
            }
            let here = trail.last().copied().unwrap_or(0);
            let Some(id) = self.child(here, &part) else {
                pending.push(part);
                pending.reverse();
                return Ok(Err((here, pending)));
            };
            match &self.node(id).kind {
                Kind::Directory(_) => trail.push(id),
                Kind::Symlink(target) => {
                    links += 1;
                    if links > LINKS_MAX {
                        return Err(PathError(format!(
                            "more than {LINKS_MAX} links lead to `{}`",
                            String::from_utf8_lossy(&part).escape_debug()
                        )));
                    }
                    if target.starts_with(b"/") {
                        trail.truncate(1);
                    }
                    let steps =
                        target.split(|byte| *byte == b'/').filter(|step| !step.is_empty() && *step != b".");
                    pending.extend(steps.rev().map(<[u8]>::to_vec));
                }
                _ => {
                    pending.push(part);
                    pending.reverse();
                    return Ok(Err((here, pending)));
                }
            }
        }
        Ok(Ok(trail.last().copied().unwrap_or(0)))
    }

    /// Like [`Self::resolve`], but makes what is missing. A file in the way is replaced, as `docker` does.
    fn make_parents(&mut self, parts: &[&[u8]]) -> Result<NodeId, PathError> {
        let (mut here, missing) = match self.resolve(parts)? {
            Ok(id) => return Ok(id),
            Err(found) => found,
        };
        for part in missing {
            if part == b".." || part.len() > NAME_MAX {
                return Err(PathError(
                    "a link in the image leads through a directory that is not there".into(),
                ));
            }
            let layer = self.layer;
            let id = self.add(Node {
                attributes: Attributes::root(0o755),
                kind: Kind::Directory(BTreeMap::new()),
                layer,
            })?;
            self.link(here, &part, id)?;
            here = id;
        }
        Ok(here)
    }

    /// Removes below a directory what is not of this layer.
    fn prune(&mut self, directory: NodeId) {
        let mut order = vec![directory];
        let mut next = 0;
        while let Some(id) = order.get(next).copied() {
            next += 1;
            order.extend(
                self.children(id).map(|(_, child)| child).filter(|child| self.node(*child).is_directory()),
            );
        }
        // Children come after their parents in `order`, so backwards every directory is emptied before its parent looks.
        for id in order.into_iter().rev() {
            let gone: Vec<Vec<u8>> = self
                .children(id)
                .filter(|(name, child)| {
                    !self.is_of_this_layer(id, name, *child) && self.children(*child).next().is_none()
                })
                .map(|(name, _)| name.to_vec())
                .collect();
            for name in gone {
                self.unlink(id, &name);
            }
        }
    }
}

#[cfg(test)]
mod tests;
