//! Sparse files in every form of GNU tar (its manual, "Storing Sparse Files"): the old one without pax, 0.0 and 0.1 with the
//! map in records, 1.0 with the map in front of the data.

use std::io::{self, Read};

use tar::{EntryType, GnuExtSparseHeader, GnuSparseHeader, Header};

use crate::entry::{Entry, number};
use crate::stream::{BLOCK, Records, Stream, bad};

/// Record with the map of form 0.1; maps of form 0.0 are put together under it.
pub(crate) const MAP: &[u8] = b"GNU.sparse.map";

/// Gives an entry size, name and segments if it is a sparse file. Reads its map, and nothing of its data.
pub(crate) fn find(
    stream: &mut Stream<impl Read>,
    header: &Header,
    records: &Records,
    entry: &mut Entry,
) -> io::Result<()> {
    let segments = if entry.kind == EntryType::GNUSparse {
        let (size, segments) = old_form(stream, header)?;
        entry.size = size;
        segments
    } else if entry.kind.is_file() && records.keys().any(|key| key.starts_with(b"GNU.sparse.")) {
        let size = number(records, b"GNU.sparse.realsize")?.or(number(records, b"GNU.sparse.size")?);
        entry.size = size.ok_or_else(|| bad("a sparse file in it has no size"))?;
        if let Some(name) = records.get(b"GNU.sparse.name".as_slice()) {
            entry.path.clone_from(name);
        }
        match records.get(b"GNU.sparse.major".as_slice()).map_or(&b"0"[..], Vec::as_slice) {
            b"0" => map_in_records(records, stream.limits.segments)?,
            b"1" => map_before_data(stream)?,
            _ => return Err(bad("it has sparse files of a form that is not known")),
        }
    } else {
        return Ok(());
    };
    check(&segments, entry.size, stream.left)?;
    entry.segments = Some(segments);
    Ok(())
}

type Segments = Vec<(u64, u64)>;

fn too_many() -> io::Error {
    bad("a sparse file in it has too many parts")
}

fn check(segments: &Segments, size: u64, stored: u64) -> io::Result<()> {
    let (mut end, mut sum): (u64, u64) = (0, 0);
    for (offset, length) in segments {
        let next = offset.checked_add(*length).filter(|next| *offset >= end && *next <= size);
        end = next.ok_or_else(|| bad("a sparse file in it has parts that overlap or lie behind its end"))?;
        sum += length;
    }
    match sum.cmp(&stored) {
        std::cmp::Ordering::Equal => Ok(()),
        std::cmp::Ordering::Greater => Err(bad("a sparse file in it has less data than its map says")),
        std::cmp::Ordering::Less => Err(bad("a sparse file in it has more data than its map says")),
    }
}

fn old_form(stream: &mut Stream<impl Read>, header: &Header) -> io::Result<(u64, Segments)> {
    let gnu = header.as_gnu().ok_or_else(|| bad("a sparse file in it has no GNU header"))?;
    let mut segments = Vec::new();
    let mut add = |blocks: &[GnuSparseHeader]| -> io::Result<()> {
        for block in blocks.iter().filter(|block| !block.is_empty()) {
            segments.push((block.offset()?, block.length()?));
        }
        Ok(())
    };
    add(&gnu.sparse)?;
    let (mut more, mut count) = (gnu.is_extended(), 0);
    while more {
        let mut extension = GnuExtSparseHeader::new();
        stream.reader.read_exact(extension.as_mut_bytes())?;
        add(&extension.sparse)?;
        count += extension.sparse.len();
        if count > stream.limits.segments {
            return Err(too_many());
        }
        more = extension.is_extended();
    }
    Ok((gnu.real_size()?, segments))
}

fn map_in_records(records: &Records, most: usize) -> io::Result<Segments> {
    let text = records.get(MAP).map_or(&b""[..], Vec::as_slice);
    if text.iter().filter(|byte| **byte == b',').count() / 2 > most {
        return Err(too_many());
    }
    let number_of = |text: &[u8]| std::str::from_utf8(text).ok()?.parse().ok();
    let numbers: Option<Vec<u64>> =
        text.split(|byte| *byte == b',').filter(|_| !text.is_empty()).map(number_of).collect();
    let numbers = numbers.ok_or_else(|| bad("the map of a sparse file in it cannot be read"))?;
    let (pairs, []) = numbers.as_chunks::<2>() else {
        return Err(bad("a sparse file in it has a map with half a part"));
    };
    if number(records, b"GNU.sparse.numblocks")? != Some(pairs.len() as u64) {
        return Err(bad("a sparse file in it has another number of parts than it says"));
    }
    Ok(pairs.iter().map(|[offset, length]| (*offset, *length)).collect())
}

/// The map in front of the data: decimal numbers, one in a line, their count first, filled up to whole blocks.
fn map_before_data(stream: &mut Stream<impl Read>) -> io::Result<Segments> {
    let before = stream.left;
    let count = map_number(stream)?;
    if count > stream.limits.segments as u64 {
        return Err(too_many());
    }
    let mut segments = Vec::new();
    for _ in 0..count {
        segments.push((map_number(stream)?, map_number(stream)?));
    }
    let used = before - stream.left;
    let rest = used.next_multiple_of(BLOCK) - used;
    io::copy(&mut stream.by_ref().take(rest), &mut io::sink())?;
    Ok(segments)
}

fn map_number(stream: &mut Stream<impl Read>) -> io::Result<u64> {
    let mut value: u64 = 0;
    for _ in 0..21 {
        let mut byte = [0];
        stream.read_exact(&mut byte)?;
        match byte[0] {
            b'\n' => return Ok(value),
            digit @ b'0'..=b'9' => {
                let next = value.checked_mul(10).and_then(|value| value.checked_add(u64::from(digit - b'0')));
                value = next.ok_or_else(|| bad("a number in it is too large"))?;
            }
            _ => break,
        }
    }
    Err(bad("the map of a sparse file in it cannot be read"))
}
