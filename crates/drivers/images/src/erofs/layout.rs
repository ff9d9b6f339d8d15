//! Decides where every inode and every block goes, before anything is written.

use super::format::{BLOCK, CHUNK, CHUNK_BITS, DataLayout, INODE, SLOT, SUPER_LENGTH, SUPER_OFFSET};
use super::tree::{Kind, NodeId, Tree};
use super::{directory, xattr};

/// Blocks with room left that are kept in mind for small inodes.
const OPEN_MAX: usize = 16;

/// Place of one inode and layout of its data.
#[derive(Debug, Clone)]
pub(super) struct Placed {
    pub(super) node: NodeId,
    pub(super) parent: usize,
    pub(super) links: u32,
    /// Offset of the inode in the image.
    pub(super) offset: u64,
    pub(super) data: DataLayout,
    /// Length of its data: file, link target or directory.
    pub(super) size: u64,
    /// First block of its data; for chunked files of its first chunk with data.
    pub(super) block: u32,
}

/// The plan.
pub(super) struct Layout {
    /// All live inodes, root first, in order of a walk by name.
    pub(super) inodes: Vec<Placed>,
    /// Index in `inodes` by node; `u32::MAX` for nodes that are not part of the image.
    pub(super) index: Vec<u32>,
    /// Blocks of the whole image.
    pub(super) blocks: u32,
    /// Blocks in front of the data.
    pub(super) metadata_blocks: u64,
    /// True if any file has holes.
    pub(super) chunked: bool,
}

/// Number of the inode at an offset; the metadata begins with the image.
pub(super) const fn inode_number(offset: u64) -> u64 {
    offset / SLOT
}

/// Lengths of the parts behind an inode that must stay together or may not cross a block.
struct Shape {
    /// Inode and attributes, and for chunked files the addresses.
    head: u64,
    /// Data kept behind it, which may not cross a block.
    tail: u64,
}

impl Layout {
    /// Plans the image of a tree; `None` if it would have more than 2³² blocks.
    pub(super) fn of(tree: &Tree) -> Option<Self> {
        let (mut inodes, index) = walk(tree);
        let mut space = Metadata { end: (SUPER_OFFSET + SUPER_LENGTH) as u64, open: Vec::new() };
        let mut chunked = false;
        for placed in &mut inodes {
            let node = tree.node(placed.node);
            let attributes = xattr::encode(&node.attributes.xattrs).len() as u64;
            let holes = matches!(&node.kind, Kind::File(data) if data.runs.is_some());
            let tail = placed.size % BLOCK;
            let shape = if holes {
                chunked = true;
                placed.data = DataLayout::Chunked;
                Shape { head: INODE + attributes + 4 * placed.size.div_ceil(CHUNK), tail: 0 }
            } else if tail > 0 && INODE + attributes + tail <= BLOCK {
                placed.data = DataLayout::Inline;
                Shape { head: INODE + attributes, tail }
            } else {
                Shape { head: INODE + attributes, tail: 0 }
            };
            placed.offset = space.place(&shape);
        }
        let metadata_blocks = space.end.div_ceil(BLOCK);
        let mut block = metadata_blocks;
        for placed in &mut inodes {
            placed.block = u32::try_from(block).ok()?;
            block += data_blocks(tree, placed);
        }
        // The last number stands for a hole.
        let blocks = u32::try_from(block).ok().filter(|blocks| *blocks < u32::MAX)?;
        Some(Self { inodes, index, blocks, metadata_blocks, chunked })
    }

    /// Index in `inodes` of a node that is part of the image.
    pub(super) fn position(&self, node: NodeId) -> usize {
        self.index[node as usize] as usize
    }
}

/// Blocks behind the metadata that hold an inode's data.
pub(super) fn data_blocks(tree: &Tree, placed: &Placed) -> u64 {
    match (placed.data, &tree.node(placed.node).kind) {
        (DataLayout::Chunked, Kind::File(data)) => data.stored() >> 12,
        (DataLayout::Inline, _) => placed.size / BLOCK,
        _ => placed.size.div_ceil(BLOCK),
    }
}

/// Chunks of a file as addresses; holes are `None`.
pub(super) fn chunk_addresses(runs: &[(bool, u32)], first: u32) -> impl Iterator<Item = Option<u32>> {
    let mut next = first;
    runs.iter().flat_map(|(data, count)| std::iter::repeat_n(*data, *count as usize)).map(move |data| {
        data.then(|| {
            let address = next;
            next += 1 << (CHUNK_BITS - 12);
            address
        })
    })
}

fn walk(tree: &Tree) -> (Vec<Placed>, Vec<u32>) {
    let mut inodes: Vec<Placed> = Vec::new();
    let mut index = vec![u32::MAX; tree.len()];
    let mut pending = vec![(0, 0)];
    while let Some((node, parent)) = pending.pop() {
        let known = index[node as usize];
        if known != u32::MAX {
            inodes[known as usize].links += 1;
            continue;
        }
        let here = inodes.len();
        index[node as usize] = u32::try_from(here).unwrap_or(u32::MAX);
        let (size, links) = match &tree.node(node).kind {
            Kind::Directory(entries) => {
                // A directory has a link from its parent, its own `.`, and the `..` of each directory in it.
                let folders = tree
                    .children(node)
                    .filter(|(_, child)| matches!(tree.node(*child).kind, Kind::Directory(_)));
                let links = 2 + u32::try_from(folders.count()).unwrap_or(u32::MAX - 2);
                (directory::length(names(entries.keys().map(|name| &**name)).into_iter()), links)
            }
            Kind::File(data) => (data.size, 1),
            Kind::Symlink(target) => (target.len() as u64, 1),
            _ => (0, 1),
        };
        inodes.push(Placed { node, parent, links, offset: 0, data: DataLayout::Plain, size, block: 0 });
        let first = pending.len();
        pending.extend(tree.children(node).map(|(_, child)| (child, here)));
        // It is a stack: the first name is to be taken next.
        pending[first..].reverse();
    }
    (inodes, index)
}

/// Names of a directory with `.` and `..` where they sort.
pub(super) fn names<'a>(entries: impl Iterator<Item = &'a [u8]>) -> Vec<&'a [u8]> {
    let mut names: Vec<&[u8]> = entries.collect();
    for special in [b".".as_slice(), b"..".as_slice()] {
        let at = names.partition_point(|name| *name < special);
        names.insert(at, special);
    }
    names
}

/// Hands out room for inodes.
struct Metadata {
    end: u64,
    /// Ends of earlier blocks that have room left.
    open: Vec<u64>,
}

impl Metadata {
    fn place(&mut self, shape: &Shape) -> u64 {
        let length = shape.head + shape.tail;
        if length <= BLOCK {
            // Whole in one block: best in one that is open, else behind the end, else in a new block.
            if let Some(slot) = self.open.iter_mut().find(|end| end.room_in_block() >= length) {
                let offset = slot.next_multiple_of(SLOT);
                *slot = offset + length;
                return offset;
            }
            let mut offset = self.end.next_multiple_of(SLOT);
            if offset % BLOCK + length > BLOCK {
                self.remember(offset);
                offset = offset.next_multiple_of(BLOCK);
            }
            self.end = offset + length;
            return offset;
        }
        let offset = self.end.next_multiple_of(BLOCK);
        self.remember(self.end);
        self.end = offset + length;
        offset
    }

    fn remember(&mut self, end: u64) {
        self.open.retain(|end| end.room_in_block() >= INODE);
        if end.room_in_block() >= INODE {
            if self.open.len() == OPEN_MAX {
                self.open.remove(0);
            }
            self.open.push(end);
        }
    }
}

trait BlockRoom {
    /// Bytes left in the block from the next slot on; 0 at the end of a block.
    fn room_in_block(&self) -> u64;
}

impl BlockRoom for u64 {
    fn room_in_block(&self) -> u64 {
        let within = self.next_multiple_of(SLOT) % BLOCK;
        if within == 0 { 0 } else { BLOCK - within }
    }
}
