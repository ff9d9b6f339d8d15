//! Headers of 512 bytes and the data between them.

use std::collections::BTreeMap;
use std::io::{self, Read};

use tar::Header;

pub(crate) const BLOCK: u64 = 512;

/// Most memory that what stands before an entry may take.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Largest extension header (pax header, long name) that is read, in bytes.
    pub extension: u64,
    /// Most bytes of names and values of all global pax headers together: they apply to, and are copied for, every entry.
    /// (`git archive` writes one of 52 bytes.)
    pub globals: usize,
    /// Most segments of one sparse file; each takes 16 bytes.
    pub segments: usize,
}

/// Keys and values of pax records.
pub(crate) type Records = BTreeMap<Vec<u8>, Vec<u8>>;

/// The archive as bytes. Reading gives the data behind the last header: all of it, or an error.
#[derive(Debug)]
pub(crate) struct Stream<R> {
    pub(crate) reader: R,
    pub(crate) limits: Limits,
    /// Data that is not read yet.
    pub(crate) left: u64,
    padding: u64,
    ended: bool,
    /// True if the blocks of zeros at the end must be there.
    pub(crate) strict: bool,
}

impl<R: Read> Read for Stream<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let wanted = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        if wanted == 0 {
            return Ok(0);
        }
        let count = self.reader.read(&mut buffer[..wanted])?;
        if count == 0 {
            return Err(cut("it ends in the middle of an entry"));
        }
        self.left -= count as u64;
        Ok(count)
    }
}

/// The archive is not what it has to be.
pub(crate) fn bad(detail: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, detail.into())
}

fn cut(detail: &str) -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, detail)
}

/// Program that packed what begins so, as its format says.
fn packed_with(start: &[u8]) -> Option<&'static str> {
    const FORMATS: [(&[u8], &str); 6] = [
        (b"\x1f\x8b", "gzip"),
        (b"\x28\xb5\x2f\xfd", "zstd"),
        (b"\xfd7zXZ\0", "xz"),
        (b"BZh", "bzip2"),
        (b"7z\xbc\xaf\x27\x1c", "7z"),
        (b"PK\x03\x04", "zip"),
    ];
    FORMATS.iter().find(|(mark, _)| start.starts_with(mark)).map(|(_, program)| *program)
}

fn is_packed(program: &str) -> io::Error {
    bad(format!("it is no tar, but packed with {program}: unpack it on the way, a plain tar is read"))
}

impl<R: Read> Stream<R> {
    pub(crate) const fn new(reader: R, limits: Limits) -> Self {
        Self { reader, limits, left: 0, padding: 0, ended: false, strict: false }
    }

    /// Expects so much data behind the header that was read last.
    pub(crate) fn expect(&mut self, stored: u64) -> io::Result<()> {
        // As signed offsets are: no file can be longer.
        if stored > i64::MAX as u64 {
            return Err(bad(format!("an entry in it claims to have {stored} bytes")));
        }
        (self.left, self.padding) = (stored, stored.next_multiple_of(BLOCK) - stored);
        Ok(())
    }

    /// Skips what is left of the data, and what fills their last block.
    pub(crate) fn skip_rest(&mut self) -> io::Result<()> {
        let rest = self.left + self.padding;
        let skipped = io::copy(&mut self.reader.by_ref().take(rest), &mut io::sink())?;
        (self.left, self.padding) = (0, 0);
        // The padding of the very last entry may be missing; a header that is cut short is found when it is read.
        if skipped + BLOCK <= rest {
            return Err(cut("it ends in the middle of an entry"));
        }
        Ok(())
    }

    /// The next header, if its checksum is right; `None` at the end of the archive.
    pub(crate) fn header(&mut self) -> io::Result<Option<Header>> {
        if self.ended {
            return Ok(None);
        }
        let mut header = Header::new_old();
        let mut filled = 0;
        while filled < header.as_bytes().len() {
            let count = self.reader.read(&mut header.as_mut_bytes()[filled..])?;
            if count == 0 {
                self.ended = true;
                let packed = packed_with(&header.as_bytes()[..filled]);
                return match (filled, self.strict) {
                    (0, false) => Ok(None),
                    (0, true) => Err(cut("it ends without its end mark: it was cut off")),
                    _ => Err(packed.map_or_else(|| cut("it ends in the middle of a header"), is_packed)),
                };
            }
            filled += count;
        }
        if header.as_bytes().iter().all(|byte| *byte == 0) {
            self.ended = true;
            return Ok(None);
        }
        let sum: u32 = header
            .as_bytes()
            .iter()
            .enumerate()
            .map(|(at, byte)| if (148..156).contains(&at) { 32 } else { u32::from(*byte) })
            .sum();
        if header.cksum().ok() != Some(sum) {
            if let Some(program) = packed_with(header.as_bytes()) {
                return Err(is_packed(program));
            }
            return Err(bad("it is not a tar archive, or is damaged: a header has a wrong checksum"));
        }
        Ok(Some(header))
    }

    /// All data behind an extension header.
    pub(crate) fn extension(&mut self) -> io::Result<Vec<u8>> {
        if self.left > self.limits.extension {
            return Err(bad(format!(
                "it has an extension header of {} bytes; at most {} are read",
                self.left, self.limits.extension
            )));
        }
        let mut bytes = Vec::new();
        self.read_to_end(&mut bytes)?;
        Ok(bytes)
    }
}
