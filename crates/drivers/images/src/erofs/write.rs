//! Writes the planned image in one pass from front to back, hashing it on the way.

use std::fs::{File, OpenOptions};
use std::io::{BufWriter, Write};

use camino::{Utf8Path, Utf8PathBuf};
use microvm_durable::cancel::Cancel;
use microvm_durable::error::{bad_input, io_error};
use microvm_durable::files::{hex, require_space};
use microvm_ports::StorageError;
use sha2::{Digest, Sha256};

use super::directory::{self, Entry};
use super::format::{
    self, BLOCK, CHUNK_BITS, COMPATIBLE, DataLayout, INCOMPATIBLE_CHUNKED, MAGIC, NULL_ADDRESS, SUPER_LENGTH,
    SUPER_OFFSET,
};
use super::layout::{Layout, Placed, chunk_addresses, data_blocks, inode_number, names};
use super::spool::{Spool, SpoolReader};
use super::tree::{Kind, Node, Tree};
use super::xattr;

#[allow(clippy::cast_possible_truncation, reason = "a constant of 4096")]
const BLOCK_LENGTH: usize = BLOCK as usize;

/// Digest and size of an image that was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Written {
    /// SHA-256 of the image in hexadecimal.
    pub(crate) sha256: String,
    /// Its length in bytes.
    pub(crate) size: u64,
}

/// Writes the image of a tree to a new file and syncs it. `progress` gets bytes done and in all.
pub(crate) fn write(
    tree: &Tree,
    spool: Spool,
    path: &Utf8Path,
    cancel: &Cancel,
    progress: &dyn Fn(u64, u64),
) -> Result<Written, StorageError> {
    let layout = Layout::of(tree).ok_or_else(|| bad_input("the image", "it is larger than 16 TiB"))?;
    let size = u64::from(layout.blocks) * BLOCK;
    let directory = path.parent().unwrap_or(path);
    require_space(directory, size, "writing the image")?;
    let spool = spool.into_reader()?;
    let mut output = Output::create(path, &layout)?;
    Metadata { tree, layout: &layout, spool: &spool }.write(&mut output, cancel)?;
    for placed in &layout.inodes {
        cancel.check()?;
        write_blocks(tree, &layout, placed, &spool, &mut output, cancel)?;
        progress(output.position, size);
    }
    debug_assert_eq!(output.position, size, "the plan was kept to");
    output.finish()
}

/// The file, the hash, and the first block held back until its checksum is known.
struct Output {
    path: Utf8PathBuf,
    file: BufWriter<File>,
    hasher: Sha256,
    position: u64,
    first: Vec<u8>,
}

impl Output {
    fn create(path: &Utf8Path, layout: &Layout) -> Result<Self, StorageError> {
        let file =
            OpenOptions::new().write(true).create_new(true).open(path).map_err(io_error("creating", path))?;
        let mut output = Self {
            path: path.to_owned(),
            file: BufWriter::with_capacity(1 << 18, file),
            hasher: Sha256::new(),
            position: 0,
            first: Vec::with_capacity(BLOCK_LENGTH),
        };
        // The format leaves this room free, for boot sectors and the like.
        output.write(&[0; SUPER_OFFSET])?;
        output.write(&super_block(layout))?;
        Ok(output)
    }

    fn write(&mut self, mut bytes: &[u8]) -> Result<(), StorageError> {
        if self.position < BLOCK {
            let count = bytes.len().min(BLOCK_LENGTH - self.first.len());
            self.first.extend_from_slice(&bytes[..count]);
            self.position += count as u64;
            bytes = &bytes[count..];
            if self.first.len() < BLOCK_LENGTH {
                return Ok(());
            }
            let mut first = std::mem::take(&mut self.first);
            let checksum = format::crc32c(&first[SUPER_OFFSET..]);
            first[SUPER_OFFSET + 4..SUPER_OFFSET + 8].copy_from_slice(&checksum.to_le_bytes());
            self.emit(&first)?;
        }
        self.position += bytes.len() as u64;
        self.emit(bytes)
    }

    fn emit(&mut self, bytes: &[u8]) -> Result<(), StorageError> {
        self.hasher.update(bytes);
        self.file.write_all(bytes).map_err(io_error("writing", &self.path))
    }

    fn pad_to(&mut self, position: u64) -> Result<(), StorageError> {
        let zeros = [0; BLOCK_LENGTH];
        while self.position < position {
            let count = usize::try_from(position - self.position).unwrap_or(BLOCK_LENGTH).min(BLOCK_LENGTH);
            self.write(&zeros[..count])?;
        }
        Ok(())
    }

    fn finish(self) -> Result<Written, StorageError> {
        let Self { path, file, hasher, position, .. } = self;
        let file = file.into_inner().map_err(|error| io_error("writing", &path)(error.into_error()))?;
        file.sync_all().map_err(io_error("syncing", &path))?;
        Ok(Written { sha256: hex(&hasher.finalize()), size: position })
    }
}

fn super_block(layout: &Layout) -> [u8; SUPER_LENGTH] {
    let mut bytes = [0; SUPER_LENGTH];
    let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
    let root = inode_number(layout.inodes[0].offset);
    let incompatible = if layout.chunked { INCOMPATIBLE_CHUNKED } else { 0 };
    put(0, &MAGIC.to_le_bytes());
    put(8, &COMPATIBLE.to_le_bytes());
    put(12, &[12]);
    put(
        14,
        &u16::try_from(root).expect("the root is placed first, right behind the super block").to_le_bytes(),
    );
    put(16, &(layout.inodes.len() as u64).to_le_bytes());
    // Time of build and UUID stay zero: equal content must give equal bytes.
    put(36, &layout.blocks.to_le_bytes());
    put(80, &incompatible.to_le_bytes());
    bytes
}

struct Metadata<'a> {
    tree: &'a Tree,
    layout: &'a Layout,
    spool: &'a SpoolReader,
}

impl Metadata<'_> {
    fn write(&self, output: &mut Output, cancel: &Cancel) -> Result<(), StorageError> {
        let mut order: Vec<&Placed> = self.layout.inodes.iter().collect();
        // Not the order of the walk: small inodes fill what earlier blocks have left.
        order.sort_by_key(|placed| placed.offset);
        for placed in order {
            cancel.check()?;
            let node = self.tree.node(placed.node);
            output.pad_to(placed.offset)?;
            let attributes = xattr::encode(&node.attributes.xattrs);
            output.write(&self.inode(placed, node, xattr::count(attributes.len())))?;
            output.write(&attributes)?;
            match (placed.data, &node.kind) {
                (DataLayout::Chunked, Kind::File(data)) => {
                    for address in chunk_addresses(data.runs.as_deref().unwrap_or_default(), placed.block) {
                        output.write(&address.unwrap_or(NULL_ADDRESS).to_le_bytes())?;
                    }
                }
                (DataLayout::Inline, Kind::File(data)) => {
                    let tail = usize::try_from(placed.size % BLOCK).unwrap_or(0);
                    let mut bytes = vec![0; tail];
                    self.spool.read(data, placed.size - tail as u64, &mut bytes)?;
                    output.write(&bytes)?;
                }
                (DataLayout::Inline, kind) => {
                    let bytes = content(self.tree, self.layout, placed, kind);
                    let whole = bytes.len() / BLOCK_LENGTH * BLOCK_LENGTH;
                    output.write(&bytes[whole..])?;
                }
                _ => {}
            }
        }
        output.pad_to(self.layout.metadata_blocks * BLOCK)
    }

    fn inode(&self, placed: &Placed, node: &Node, xattr_count: u16) -> [u8; 64] {
        let attributes = &node.attributes;
        let mut bytes = [0; 64];
        let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
        let format: u16 = 1 | ((placed.data as u16) << 1);
        let union = match node.kind {
            Kind::CharacterDevice(major, minor) | Kind::BlockDevice(major, minor) => {
                format::device(major, minor)
            }
            _ if placed.data == DataLayout::Chunked => CHUNK_BITS - 12,
            _ => placed.block,
        };
        put(0, &format.to_le_bytes());
        put(2, &xattr_count.to_le_bytes());
        put(4, &(file_type(&node.kind).0 | (attributes.mode & 0o7777)).to_le_bytes());
        put(8, &placed.size.to_le_bytes());
        put(16, &union.to_le_bytes());
        // From 1 on: programs take 0 for no file at all.
        let number = u32::try_from(self.layout.position(placed.node) + 1).unwrap_or(u32::MAX);
        put(20, &number.to_le_bytes());
        put(24, &attributes.uid.to_le_bytes());
        put(28, &attributes.gid.to_le_bytes());
        put(32, &attributes.modified.to_le_bytes());
        put(40, &attributes.modified_ns.min(999_999_999).to_le_bytes());
        put(44, &placed.links.to_le_bytes());
        bytes
    }
}

/// The mode's type bits, and the number in directory entries.
const fn file_type(kind: &Kind) -> (u16, u8) {
    match kind {
        Kind::File(_) => (0o100_000, 1),
        Kind::Directory(_) => (0o040_000, 2),
        Kind::CharacterDevice(..) => (0o020_000, 3),
        Kind::BlockDevice(..) => (0o060_000, 4),
        Kind::Fifo => (0o010_000, 5),
        Kind::Symlink(_) => (0o120_000, 7),
    }
}

/// Data of what is not a file: a link's target or a directory.
fn content(tree: &Tree, layout: &Layout, placed: &Placed, kind: &Kind) -> Vec<u8> {
    match kind {
        Kind::Symlink(target) => target.to_vec(),
        Kind::Directory(children) => {
            let entries: Vec<Entry<'_>> = names(children.keys().map(|name| &**name))
                .into_iter()
                .map(|name| {
                    let position = match name {
                        b"." => layout.position(placed.node),
                        b".." => placed.parent,
                        _ => children.get(name).map_or(0, |child| layout.position(*child)),
                    };
                    let target = &layout.inodes[position];
                    Entry {
                        name,
                        inode: inode_number(target.offset),
                        kind: file_type(&tree.node(target.node).kind).1,
                    }
                })
                .collect();
            directory::encode(&entries)
        }
        _ => Vec::new(),
    }
}

fn write_blocks(
    tree: &Tree,
    layout: &Layout,
    placed: &Placed,
    spool: &SpoolReader,
    output: &mut Output,
    cancel: &Cancel,
) -> Result<(), StorageError> {
    let blocks = data_blocks(tree, placed);
    if blocks == 0 {
        return Ok(());
    }
    debug_assert_eq!(
        output.position,
        u64::from(placed.block) * BLOCK,
        "the plan was kept to ({})",
        spool.path()
    );
    let end = output.position + blocks * BLOCK;
    match &tree.node(placed.node).kind {
        Kind::File(data) => {
            let length = if placed.data == DataLayout::Chunked {
                data.stored()
            } else {
                placed.size.min(blocks * BLOCK)
            };
            let mut buffer = vec![0; 1 << 18];
            let mut done = 0;
            while done < length {
                cancel.check()?;
                let count = usize::try_from(length - done).unwrap_or(usize::MAX).min(buffer.len());
                spool.read(data, done, &mut buffer[..count])?;
                output.write(&buffer[..count])?;
                done += count as u64;
            }
        }
        kind => {
            let bytes = content(tree, layout, placed, kind);
            let whole = usize::try_from(blocks * BLOCK).unwrap_or(usize::MAX).min(bytes.len());
            output.write(&bytes[..whole])?;
        }
    }
    output.pad_to(end)
}
