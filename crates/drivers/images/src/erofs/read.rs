//! Reads an image of the store back into a tree: names and attributes now, contents when the new image is written.
//!
//! Only what [`mod@super::write`] makes is read (see the module's own page); its file was verified against its digest before.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::os::unix::fs::FileExt as _;

use camino::{Utf8Path, Utf8PathBuf};
use microvm_durable::cancel::Cancel;
use microvm_durable::error::{damaged, io_error};
use microvm_ports::StorageError;

use super::format::{
    BLOCK, CHUNK, CHUNK_BITS, DIRENT, INODE, MAGIC, NULL_ADDRESS, SLOT, SUPER_LENGTH, SUPER_OFFSET,
};
use super::spool::{FileData, Origin, Spool};
use super::tree::{Attributes, Kind, Tree};
use super::xattr;

/// Longest content that is read into memory at once: directories and link targets.
const CONTENT_MAX: u64 = 256 << 20;

/// Puts everything of the image at `path` into `tree`; contents of files are found through `spool` afterwards.
///
/// # Errors
/// [`StorageError::Damaged`] if the image is not one that this crate wrote; [`StorageError::Io`].
pub(crate) fn read(
    path: &Utf8Path,
    tree: &mut Tree,
    spool: &mut Spool,
    cancel: &Cancel,
) -> Result<(), StorageError> {
    let file = File::open(path).map_err(io_error("opening", path))?;
    let image = Image { path: path.to_owned(), file };
    let mut super_block = [0; SUPER_LENGTH];
    image.bytes(SUPER_OFFSET as u64, &mut super_block)?;
    // 12: the size of blocks as a power of two, 4096.
    if u32_at(&super_block, 0) != MAGIC || super_block[12] != 12 {
        return Err(image.damaged("it is no file system that is known here"));
    }
    let mut first_names: HashMap<u64, Vec<u8>> = HashMap::new();
    let mut pending = vec![(u64::from(u16_at(&super_block, 14)), Vec::new())];
    while let Some((number, name)) = pending.pop() {
        cancel.check()?;
        if let Some(first) = first_names.get(&number) {
            tree.hard_link(&name, first).map_err(|error| image.damaged(&error.0))?;
            continue;
        }
        let inode = image.inode(number)?;
        let kind = image.kind(&inode)?;
        if inode.is_directory() {
            for (entry, child) in image.directory(&inode)?.into_iter().rev() {
                pending.push((child, [&name[..], b"/", &entry[..]].concat()));
            }
        } else if inode.links > 1 {
            // Only of files with several names: a million others need not be remembered.
            first_names.insert(number, name.clone());
        }
        tree.insert(&name, inode.attributes, kind).map_err(|error| image.damaged(&error.0))?;
    }
    spool.set_base(image.path, image.file);
    Ok(())
}

struct Image {
    path: Utf8PathBuf,
    file: File,
}

/// An inode as it is stored.
struct Inode {
    attributes: Attributes,
    type_bits: u16,
    layout: u16,
    size: u64,
    /// First block, device number or chunk format.
    union: u32,
    links: u32,
    /// Offset of what is behind the inode and its attributes.
    behind: u64,
}

impl Inode {
    const fn is_directory(&self) -> bool {
        self.type_bits == 0o040_000
    }

    /// Bytes in blocks; the rest is behind the inode.
    const fn in_blocks(&self) -> u64 {
        if self.layout == 2 { self.size / BLOCK * BLOCK } else { self.size }
    }
}

impl Image {
    fn damaged(&self, why: &str) -> StorageError {
        damaged(format!("the image {}", self.path), why.to_owned())
    }

    fn bytes(&self, offset: u64, buffer: &mut [u8]) -> Result<(), StorageError> {
        self.file.read_exact_at(buffer, offset).map_err(io_error("reading", &self.path))
    }

    fn inode(&self, number: u64) -> Result<Inode, StorageError> {
        let offset = number.saturating_mul(SLOT);
        let mut head = [0; 64];
        self.bytes(offset, &mut head)?;
        let format = u16_at(&head, 0);
        if format & 1 != 1 {
            return Err(self.damaged("an inode has the short form"));
        }
        let count = usize::from(u16_at(&head, 2));
        let length = if count == 0 { 0 } else { xattr::length(u16_at(&head, 2)) };
        let mut stored = vec![0; length];
        self.bytes(offset + INODE, &mut stored)?;
        let xattrs =
            xattr::decode(&stored).ok_or_else(|| self.damaged("extended attributes cannot be read"))?;
        let mode = u16_at(&head, 4);
        let attributes = Attributes {
            mode: mode & 0o7777,
            uid: u32_at(&head, 24),
            gid: u32_at(&head, 28),
            modified: i64::from_le_bytes(head[32..40].try_into().unwrap_or_default()),
            modified_ns: u32_at(&head, 40),
            xattrs,
        };
        Ok(Inode {
            attributes,
            type_bits: mode & 0o170_000,
            layout: (format >> 1) & 7,
            size: u64::from_le_bytes(head[8..16].try_into().unwrap_or_default()),
            union: u32_at(&head, 16),
            links: u32_at(&head, 44),
            behind: offset + INODE + length as u64,
        })
    }

    fn kind(&self, inode: &Inode) -> Result<Kind, StorageError> {
        let (major, minor) =
            ((inode.union >> 8) & 0xfff, (inode.union & 0xff) | ((inode.union >> 12) & 0xf_ff00));
        Ok(match inode.type_bits {
            0o100_000 => Kind::File(self.data(inode)?),
            0o040_000 => Kind::Directory(BTreeMap::new()),
            0o120_000 => Kind::Symlink(self.content(inode)?.into()),
            0o020_000 => Kind::CharacterDevice(major, minor),
            0o060_000 => Kind::BlockDevice(major, minor),
            0o010_000 => Kind::Fifo,
            _ => return Err(self.damaged("an entry has an unknown type")),
        })
    }

    /// Place of a file's content in this image.
    fn data(&self, inode: &Inode) -> Result<FileData, StorageError> {
        let (size, first) = (inode.size, u64::from(inode.union) * BLOCK);
        match inode.layout {
            0 => Ok(FileData { size, offset: first, runs: None, origin: Origin::Base { tail: None } }),
            2 => {
                let tail = (inode.in_blocks() < size).then_some((inode.in_blocks(), inode.behind));
                Ok(FileData { size, offset: first, runs: None, origin: Origin::Base { tail } })
            }
            4 if inode.union == CHUNK_BITS - 12 => self.chunks(inode),
            _ => Err(self.damaged("a file has a layout that is not known here")),
        }
    }

    /// A file with holes: its chunks with data follow one another.
    fn chunks(&self, inode: &Inode) -> Result<FileData, StorageError> {
        let count = usize::try_from(inode.size.div_ceil(CHUNK)).unwrap_or(usize::MAX);
        if count as u64 > CONTENT_MAX {
            return Err(self.damaged("a file with holes is too large"));
        }
        let mut stored = vec![0; 4 * count];
        self.bytes(inode.behind, &mut stored)?;
        let mut runs: Vec<(bool, u32)> = Vec::new();
        let mut first = None;
        for address in stored.chunks_exact(4).map(|bytes| u32_at(bytes, 0)) {
            let data = address != NULL_ADDRESS;
            if data && first.is_none() {
                first = Some(u64::from(address) * BLOCK);
            }
            match runs.last_mut() {
                Some((last, length)) if *last == data && *length < u32::MAX => *length += 1,
                _ => runs.push((data, 1)),
            }
        }
        Ok(FileData {
            size: inode.size,
            offset: first.unwrap_or(0),
            runs: Some(runs),
            origin: Origin::Base { tail: None },
        })
    }

    /// Content of a directory or a link.
    fn content(&self, inode: &Inode) -> Result<Vec<u8>, StorageError> {
        if inode.size > CONTENT_MAX || !matches!(inode.layout, 0 | 2) {
            return Err(self.damaged("a directory or a link cannot be read"));
        }
        let mut content = vec![0; usize::try_from(inode.size).unwrap_or(0)];
        let (blocks, tail) = content.split_at_mut(usize::try_from(inode.in_blocks()).unwrap_or(0));
        self.bytes(u64::from(inode.union) * BLOCK, blocks)?;
        self.bytes(inode.behind, tail)?;
        Ok(content)
    }

    /// Names of a directory with the numbers of their inodes.
    fn directory(&self, inode: &Inode) -> Result<Vec<(Vec<u8>, u64)>, StorageError> {
        let wrong = || self.damaged("a directory cannot be read");
        let content = self.content(inode)?;
        let mut found = Vec::new();
        for block in content.chunks(usize::try_from(BLOCK).unwrap_or(4096)) {
            let first = usize::from(u16_at(block.get(8..10).ok_or_else(wrong)?, 0));
            let count = first / DIRENT;
            for index in 0..count {
                let entry = block.get(index * DIRENT..(index + 1) * DIRENT).ok_or_else(wrong)?;
                let start = usize::from(u16_at(entry, 8));
                let end = match block.get((index + 1) * DIRENT..(index + 2) * DIRENT) {
                    Some(next) if index + 1 < count => usize::from(u16_at(next, 8)),
                    _ => block.len(),
                };
                let name = block.get(start..end).ok_or_else(wrong)?;
                // The last name of a block may be padded with zeros.
                let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
                if !matches!(name, b"." | b"..") {
                    let number = u64::from_le_bytes(entry[..8].try_into().unwrap_or_default());
                    found.push((name.to_vec(), number));
                }
            }
        }
        Ok(found)
    }
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}
