//! Directory blocks: entries first, then their names; sorted by name over all blocks.

use super::format::{BLOCK, DIRENT};

#[allow(clippy::cast_possible_truncation, reason = "a constant of 4096")]
const BLOCK_LENGTH: usize = BLOCK as usize;

/// One entry.
#[derive(Debug, Clone, Copy)]
pub(super) struct Entry<'a> {
    pub(super) name: &'a [u8],
    pub(super) inode: u64,
    pub(super) kind: u8,
}

/// Number of entries in each block, and the length of the directory. Depends on the names only.
fn blocks<'a>(names: impl Iterator<Item = &'a [u8]>) -> (Vec<usize>, u64) {
    let mut counts = vec![0];
    let mut used = 0;
    for name in names {
        let needed = DIRENT + name.len();
        // The format lets no entry and no name cross a block.
        if used + needed > BLOCK_LENGTH {
            counts.push(0);
            used = 0;
        }
        used += needed;
        if let Some(count) = counts.last_mut() {
            *count += 1;
        }
    }
    let length = (counts.len() as u64 - 1) * BLOCK + used as u64;
    (counts, length)
}

/// Length of a directory with these names, which must include `.` and `..`.
pub(super) fn length<'a>(names: impl Iterator<Item = &'a [u8]>) -> u64 {
    blocks(names).1
}

/// The bytes of a directory; `entries` sorted by name and with `.` and `..`.
pub(super) fn encode(entries: &[Entry<'_>]) -> Vec<u8> {
    let (counts, length) = blocks(entries.iter().map(|entry| entry.name));
    let mut bytes = Vec::with_capacity(usize::try_from(length).unwrap_or(0));
    let mut rest = entries;
    for count in counts {
        let (block, later) = rest.split_at(count);
        rest = later;
        // Between blocks only: the last one ends with its last name.
        bytes.resize(bytes.len().next_multiple_of(BLOCK_LENGTH), 0);
        // A block is far shorter than 64 KiB, so no offset is cut.
        let mut name_offset = u16::try_from(count * DIRENT).unwrap_or(u16::MAX);
        for entry in block {
            bytes.extend(entry.inode.to_le_bytes());
            bytes.extend(name_offset.to_le_bytes());
            bytes.extend([entry.kind, 0]);
            name_offset += u16::try_from(entry.name.len()).unwrap_or(u16::MAX);
        }
        for entry in block {
            bytes.extend(entry.name);
        }
    }
    bytes
}
