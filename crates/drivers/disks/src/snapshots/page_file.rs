//! `memory.pages`: packed pages with their index.
//!
//! ```text
//!  0   "MVMPAGES"   version u32 = 1   page size u32 = 4096
//!  16  pages of memory u64   entries u64   pages of content u64   XXH64 of the bytes before and of the index u64
//!  48  entries, ascending, not overlapping: first page u64, count u32, kind u32 (0 content, 1 zeros)
//!      padding with zeros to a whole page
//!      content of the entries of kind 0, in their order
//! ```
//!
//! All numbers are little-endian. The content begins at a whole page, so that it can be mapped, or copied by the file
//! system. Its checksums are in the snapshot's manifest.

use std::fs::File;
use std::os::unix::fs::FileExt;

use camino::{Utf8Path, Utf8PathBuf};
use microvm_durable::error::io_error;
use microvm_ports::StorageError;
use microvm_ports::branch::{PAGE_SIZE, PageRange};
use xxhash_rust::xxh64::Xxh64;

const MAGIC: &[u8; 8] = b"MVMPAGES";
const VERSION: u32 = 1;
const HEADER: u64 = 48;
const ENTRY: u64 = 16;
/// One page.
pub(crate) const PAGE: u64 = PAGE_SIZE as u64;
/// A host holds the index in memory: 16 Mi entries are 128 GiB of memory of which every other page was changed.
const ENTRIES_MAX: u64 = 1 << 24;
/// Entries read at once: memory is only taken for what is there.
const ENTRIES_AT_ONCE: u64 = 4096;

/// Content of a run of pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Content {
    /// Bytes, from here on in the source of the run.
    At(u64),
    /// Zeros.
    Zero,
}

/// Pages in a row of one kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Run {
    pub(crate) range: PageRange,
    pub(crate) content: Content,
}

/// Fault of an index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct BadIndex(pub(crate) String);

fn bad<T>(detail: impl Into<String>) -> Result<T, BadIndex> {
    Err(BadIndex(detail.into()))
}

/// Offset of the content in a file with so many entries.
pub(crate) fn content_start(entries: u64) -> u64 {
    (HEADER + entries * ENTRY).next_multiple_of(PAGE)
}

/// Pages of content of some runs.
pub(crate) fn content_pages(runs: &[Run]) -> u64 {
    runs.iter().filter(|run| run.content != Content::Zero).map(|run| run.range.count).sum()
}

/// True if so many entries can be written.
pub(crate) const fn fits(entries: usize) -> bool {
    entries as u64 <= ENTRIES_MAX
}

/// Everything before the content.
pub(crate) fn encode_index(pages: u64, runs: &[Run]) -> Vec<u8> {
    let entries = runs.len() as u64;
    let mut bytes = Vec::with_capacity(usize::try_from(content_start(entries)).unwrap_or(0));
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&VERSION.to_le_bytes());
    bytes.extend_from_slice(&4096u32.to_le_bytes());
    // The last is the checksum, which is known at the end.
    for value in [pages, entries, content_pages(runs), 0] {
        bytes.extend_from_slice(&value.to_le_bytes());
    }
    for run in runs {
        bytes.extend_from_slice(&run.range.first.to_le_bytes());
        let count = u32::try_from(run.range.count).unwrap_or(u32::MAX);
        bytes.extend_from_slice(&count.to_le_bytes());
        bytes.extend_from_slice(&u32::from(run.content == Content::Zero).to_le_bytes());
    }
    let mut sum = Xxh64::new(0);
    sum.update(&bytes[..40]);
    sum.update(&bytes[48..]);
    bytes[40..48].copy_from_slice(&sum.digest().to_le_bytes());
    bytes.resize(usize::try_from(content_start(entries)).unwrap_or(bytes.len()), 0);
    bytes
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..at + 8).and_then(|part| part.try_into().ok()).map_or(0, u64::from_le_bytes)
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).and_then(|part| part.try_into().ok()).map_or(0, u32::from_le_bytes)
}

/// Reads the index of a file of `length` bytes for a memory of `pages` pages. `read` fills a buffer from a place in it.
/// The content of each run is a place in the file.
pub(crate) fn decode_index(
    length: u64,
    pages: u64,
    mut read: impl FnMut(&mut [u8], u64) -> std::io::Result<()>,
) -> Result<Vec<Run>, BadIndex> {
    let mut read = |buffer: &mut [u8], at: u64| {
        read(buffer, at).map_err(|error| BadIndex(format!("reading at byte {at} failed: {error}")))
    };
    let mut header = [0; 48];
    if length < HEADER {
        return bad(format!("it has {length} bytes, fewer than its header"));
    }
    read(&mut header, 0)?;
    if !header.starts_with(MAGIC) {
        return bad("it does not begin as packed pages do");
    }
    let (version, page) = (u32_at(&header, 8), u32_at(&header, 12));
    if version != VERSION || page != 4096 {
        return bad(format!(
            "it has version {version} and pages of {page} bytes, this program reads {VERSION} and 4096"
        ));
    }
    let (of, entries, content) = (u64_at(&header, 16), u64_at(&header, 24), u64_at(&header, 32));
    if of != pages {
        return bad(format!("it is of a memory of {of} pages, {pages} were expected"));
    }
    if entries > ENTRIES_MAX || entries > pages {
        return bad(format!("{entries} entries are too many"));
    }
    let start = content_start(entries);
    // By the header alone: a file that was cut is found before its entries are read.
    if content > pages || start + content * PAGE != length {
        return bad(format!("{content} pages of content after {entries} entries do not make {length} bytes"));
    }
    let mut sum = Xxh64::new(0);
    // All of the header but the checksum itself.
    sum.update(&header[..40]);
    let mut runs: Vec<Run> = Vec::new();
    let (mut done, mut next, mut at) = (0, 0, start);
    let mut buffer = Vec::new();
    while done < entries {
        let now = (entries - done).min(ENTRIES_AT_ONCE);
        buffer.resize(usize::try_from(now * ENTRY).unwrap_or(0), 0);
        read(&mut buffer, HEADER + done * ENTRY)?;
        sum.update(&buffer);
        for entry in buffer.chunks_exact(16) {
            let (first, count) = (u64_at(entry, 0), u64::from(u32_at(entry, 8)));
            let end = first.checked_add(count).filter(|end| *end <= pages);
            let Some(end) = end.filter(|_| count > 0 && first >= next) else {
                return bad(format!(
                    "{count} pages from page {first} on do not fit after page {next} of {pages}"
                ));
            };
            next = end;
            let content = match u32_at(entry, 12) {
                0 => Content::At(at),
                1 => Content::Zero,
                kind => return bad(format!("an entry has the unknown kind {kind}")),
            };
            if content != Content::Zero {
                at += count * PAGE;
            }
            runs.push(Run { range: PageRange { first, count }, content });
        }
        done += now;
    }
    if at != length {
        return bad(format!("its entries name content up to byte {at}, it has {length} bytes"));
    }
    if sum.digest() != u64_at(&header, 40) {
        return bad("the checksum of its index is wrong");
    }
    // In no checksum, so it must be what the format says.
    let padding = usize::try_from(start - HEADER - entries * ENTRY).unwrap_or(0);
    let mut rest = vec![0; padding];
    read(&mut rest, HEADER + entries * ENTRY)?;
    if rest.iter().any(|byte| *byte != 0) {
        return bad("there is something between its index and its content");
    }
    Ok(runs)
}

/// An open file of packed pages.
pub(crate) struct PageFile {
    pub(crate) file: File,
    pub(crate) path: Utf8PathBuf,
    pub(crate) runs: Vec<Run>,
}

impl PageFile {
    /// Opens a file and reads its index; the inner error tells what is wrong with the index.
    pub(crate) fn open(path: &Utf8Path, pages: u64) -> Result<Result<Self, BadIndex>, StorageError> {
        let file = File::open(path).map_err(io_error("opening", path))?;
        let length = file.metadata().map_err(io_error("examining", path))?.len();
        let runs = decode_index(length, pages, |buffer, at| file.read_exact_at(buffer, at));
        Ok(runs.map(|runs| Self { file, path: path.to_owned(), runs }))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn decode(bytes: &[u8], pages: u64) -> Result<Vec<Run>, BadIndex> {
        decode_index(bytes.len() as u64, pages, |buffer, at| {
            let at = usize::try_from(at).unwrap();
            let part = bytes.get(at..at + buffer.len()).ok_or(std::io::ErrorKind::UnexpectedEof)?;
            buffer.copy_from_slice(part);
            Ok(())
        })
    }

    /// A sound file and its runs.
    fn file(steps: &[(u64, u64, bool)]) -> (Vec<u8>, Vec<Run>, u64) {
        let (mut runs, mut next, mut at) = (Vec::new(), 0, content_start(steps.len() as u64));
        for (gap, count, zero) in steps {
            let range = PageRange { first: next + gap, count: *count };
            next = range.end();
            let content = if *zero { Content::Zero } else { Content::At(at) };
            at += if *zero { 0 } else { count * PAGE };
            runs.push(Run { range, content });
        }
        let mut bytes = encode_index(next + 1, &runs);
        bytes.resize(usize::try_from(at).unwrap(), 7);
        (bytes, runs, next + 1)
    }

    fn steps() -> impl Strategy<Value = Vec<(u64, u64, bool)>> {
        prop::collection::vec((0u64..5, 1u64..4, any::<bool>()), 0..300)
    }

    proptest! {
        #[test]
        fn an_index_round_trips(steps in steps()) {
            let (bytes, runs, pages) = file(&steps);
            prop_assert_eq!(decode(&bytes, pages).unwrap(), runs);
        }

        #[test]
        fn a_changed_byte_of_the_index_is_found(steps in steps(), at in any::<prop::sample::Index>(), change in 1u8..) {
            let (mut bytes, _, pages) = file(&steps);
            let at = at.index(usize::try_from(content_start(steps.len() as u64)).unwrap());
            bytes[at] ^= change;
            prop_assert!(decode(&bytes, pages).is_err());
        }

        #[test]
        fn any_other_length_is_found(steps in steps(), length in any::<prop::sample::Index>()) {
            let (mut bytes, _, pages) = file(&steps);
            let other = length.index(bytes.len() * 2);
            prop_assume!(other != bytes.len());
            bytes.resize(other, 0);
            prop_assert!(decode(&bytes, pages).is_err());
        }

        #[test]
        fn any_bytes_are_answered(bytes in prop::collection::vec(any::<u8>(), 0..300), pages in any::<u64>(), entries in any::<u64>()) {
            let _ = decode(&bytes, pages);
            let mut header = encode_index(pages, &[]);
            header[24..32].copy_from_slice(&entries.to_le_bytes());
            header.extend(bytes);
            let _ = decode(&header, pages);
        }
    }

    #[test]
    fn entries_out_of_order_are_refused() {
        let run = |first| Run { range: PageRange { first, count: 2 }, content: Content::Zero };
        for runs in [[run(4), run(0)], [run(4), run(5)], [run(0), run(9)]] {
            assert!(decode(&encode_index(10, &runs), 10).is_err());
        }
        assert!(decode(&encode_index(10, &[run(0), run(2)]), 10).is_ok());
    }
}
