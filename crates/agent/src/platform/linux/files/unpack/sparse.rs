//! Sparse files of pax archives, in the three forms of GNU tar's: 0.0 and 0.1 have the map in records, 1.0 in front of the
//! data (tar's manual, "Storing Sparse Files"). The older form, without pax, is read by the `tar` crate.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt as _;

use tar::Entry;

use super::broken;
use crate::core::failure::{AgentError, AgentResult, show};

/// Most parts of one file: their places are held in the guest's memory, 16 bytes each.
const PARTS_MAX: u64 = 1 << 18;
const BLOCK: u64 = 512;

/// What the records of an entry say of the file it is.
pub(super) struct Sparse {
    /// Its name where the entry has a made-up one, for readers that do not know of sparse files.
    pub(super) name: Option<Vec<u8>>,
    size: u64,
    map: Map,
}

enum Map {
    /// Pairs of place and length.
    Known(Vec<(u64, u64)>),
    /// It comes before the data.
    Ahead,
}

fn bad(detail: &str) -> AgentError {
    broken(std::io::Error::other(format!("a sparse file in it {detail}")))
}

fn number(text: &[u8]) -> AgentResult<u64> {
    let number = std::str::from_utf8(text).ok().and_then(|text| text.parse().ok());
    number.ok_or_else(|| bad("has something else where a number belongs"))
}

fn pair(numbers: &[u64]) -> AgentResult<Vec<(u64, u64)>> {
    match numbers.as_chunks::<2>() {
        (pairs, []) => Ok(pairs.iter().map(|[place, length]| (*place, *length)).collect()),
        _ => Err(bad("has a map with half a part")),
    }
}

impl Sparse {
    /// `None` for a file that is not sparse.
    pub(super) fn of(entry: &mut Entry<'_, impl Read>) -> AgentResult<Option<Self>> {
        let (mut name, mut size, mut count, mut major, mut found) = (None, None, None, 0, false);
        let mut numbers = Vec::new();
        for record in entry.pax_extensions().map_err(broken)?.into_iter().flatten() {
            let record = record.map_err(broken)?;
            let Some(key) = record.key_bytes().strip_prefix(b"GNU.sparse.") else { continue };
            found = true;
            let value = record.value_bytes();
            match key {
                b"name" => name = Some(value.to_vec()),
                b"size" | b"realsize" => size = Some(number(value)?),
                b"numblocks" => count = Some(number(value)?),
                b"major" => major = number(value)?,
                b"offset" | b"numbytes" => numbers.push(number(value)?),
                b"map" if value.is_empty() => {}
                b"map" => {
                    numbers = value.split(|byte| *byte == b',').map(number).collect::<AgentResult<_>>()?;
                }
                _ => {}
            }
        }
        if !found {
            return Ok(None);
        }
        let size = size.ok_or_else(|| bad("has no size"))?;
        let map = match major {
            0 => {
                let parts = pair(&numbers)?;
                if count != Some(parts.len() as u64) {
                    return Err(bad("has another number of parts than it says"));
                }
                Map::Known(parts)
            }
            1 => Map::Ahead,
            other => return Err(bad(&format!("is of a form that is not known ({other})"))),
        };
        Ok(Some(Self { name, size, map }))
    }

    /// Writes what is stored to where it belongs; the rest of the file is holes.
    pub(super) fn write(
        self,
        entry: &mut impl Read,
        file: &File,
        name: &[u8],
        buffer: &mut [u8],
    ) -> AgentResult<()> {
        let failed = |error| AgentError::system(format!("write {}", show(name)), error);
        let parts = match self.map {
            Map::Known(parts) => parts,
            Map::Ahead => map_ahead(entry)?,
        };
        let mut end = 0;
        for (place, length) in parts {
            let next = place.checked_add(length).filter(|next| place >= end && *next <= self.size);
            end = next.ok_or_else(|| bad("has parts that overlap or lie behind its end"))?;
            let (mut at, mut left) = (place, length);
            while left > 0 {
                let wanted = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
                let count = entry.read(&mut buffer[..wanted]).map_err(broken)?;
                if count == 0 {
                    return Err(bad("has less data than its map says"));
                }
                file.write_all_at(&buffer[..count], at).map_err(failed)?;
                at += count as u64;
                left -= count as u64;
            }
        }
        if entry.read(&mut buffer[..1]).map_err(broken)? > 0 {
            return Err(bad("has more data than its map says"));
        }
        file.set_len(self.size).map_err(failed)
    }
}

/// The map in front of the data: decimal numbers, one in a line, their count first, filled up to whole blocks.
fn map_ahead(entry: &mut impl Read) -> AgentResult<Vec<(u64, u64)>> {
    let mut used: u64 = 0;
    let mut line = || -> AgentResult<u64> {
        let mut digits = Vec::new();
        loop {
            let mut byte = [0];
            entry.read_exact(&mut byte).map_err(broken)?;
            used += 1;
            match byte[0] {
                b'\n' => return number(&digits),
                digit if digits.len() < 20 => digits.push(digit),
                _ => return Err(bad("has a map that cannot be read")),
            }
        }
    };
    let count = line()?;
    if count > PARTS_MAX {
        return Err(bad(&format!("has {count} parts; at most {PARTS_MAX} are taken")));
    }
    let parts = (0..count).map(|_| Ok((line()?, line()?))).collect::<AgentResult<_>>()?;
    let filler = used.next_multiple_of(BLOCK) - used;
    let skipped = std::io::copy(&mut entry.take(filler), &mut std::io::sink()).map_err(broken)?;
    if skipped == filler { Ok(parts) } else { Err(bad("ends in its map")) }
}
