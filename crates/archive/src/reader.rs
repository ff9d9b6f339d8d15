//! The walk from entry to entry.

use std::io::{self, Read};

use tar::{EntryType, Header};

use crate::entry::{Entry, Names, number};
use crate::stream::{Limits, Records, Stream, bad};
use crate::{pax, sparse};

/// An archive that is read entry by entry. Reading from it gives the data of the current entry: all of it, or an error.
#[derive(Debug)]
pub struct ArchiveReader<R> {
    stream: Stream<R>,
    global: Records,
}

impl<R: Read> Read for ArchiveReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.stream.read(buffer)
    }
}

impl<R: Read> ArchiveReader<R> {
    /// Reads an archive within `limits`.
    pub const fn new(reader: R, limits: Limits) -> Self {
        Self { stream: Stream::new(reader, limits), global: Records::new() }
    }

    /// Refuses an archive without its end mark: it was cut between two entries. Not for layers, which have a digest, and whose
    /// makers sometimes leave the mark out.
    #[must_use]
    pub fn strict(mut self) -> Self {
        self.stream.strict = true;
        self
    }

    /// The next entry, after skipping what was not read of the last; `None` at the end.
    ///
    /// # Errors
    /// Those of the reader, [`io::ErrorKind::UnexpectedEof`] if the archive is cut off, [`io::ErrorKind::InvalidData`] if it
    /// cannot be understood or is beyond the limits.
    pub fn next_entry(&mut self) -> io::Result<Option<Entry>> {
        let mut records = Records::new();
        let mut names = Names::default();
        loop {
            self.stream.skip_rest()?;
            let Some(header) = self.stream.header()? else { return Ok(None) };
            let kind = header.entry_type();
            let stored = stored_size(&header, &records)?;
            self.stream.expect(stored)?;
            match kind {
                EntryType::XGlobalHeader => self.take_in_globals()?,
                EntryType::XHeader => {
                    records = self.global.clone();
                    self.pax(&mut records)?;
                }
                EntryType::GNULongName => names.path = Some(until_zero(self.stream.extension()?)),
                EntryType::GNULongLink => names.link = Some(until_zero(self.stream.extension()?)),
                _ => {
                    if records.is_empty() {
                        records.clone_from(&self.global);
                    }
                    let mut entry = Entry::of(&header, stored, &records, names)?;
                    sparse::find(&mut self.stream, &header, &records, &mut entry)?;
                    entry.settle_kind();
                    return Ok(Some(entry));
                }
            }
        }
    }

    /// Reads what follows the end, so that a checksum over the whole stream can be compared.
    ///
    /// # Errors
    /// Those of the reader, and of an entry that is cut off.
    pub fn drain(mut self) -> io::Result<()> {
        self.stream.skip_rest()?;
        io::copy(&mut self.stream.reader, &mut io::sink())?;
        Ok(())
    }

    fn take_in_globals(&mut self) -> io::Result<()> {
        let mut global = std::mem::take(&mut self.global);
        self.pax(&mut global)?;
        let held: usize = global.iter().map(|(name, value)| name.len() + value.len()).sum();
        if held > self.stream.limits.globals {
            let most = self.stream.limits.globals;
            return Err(bad(format!("its global headers have {held} bytes; at most {most} are taken")));
        }
        self.global = global;
        Ok(())
    }

    /// Adds the records of a pax header; the last one of a key counts.
    fn pax(&mut self, records: &mut Records) -> io::Result<()> {
        let bytes = self.stream.extension()?;
        let mut map = Vec::new();
        for record in pax::records(&bytes) {
            let (key, value) = record?;
            if matches!(key, b"GNU.sparse.offset" | b"GNU.sparse.numbytes") {
                // Form 0.0 repeats these two; the next form has them in one record.
                if !map.is_empty() {
                    map.push(b',');
                }
                map.extend_from_slice(value);
            } else {
                records.insert(key.to_vec(), value.to_vec());
            }
        }
        if !map.is_empty() {
            records.insert(sparse::MAP.to_vec(), map);
        }
        Ok(())
    }
}

/// Bytes that follow a header.
fn stored_size(header: &Header, records: &Records) -> io::Result<u64> {
    let kind = header.entry_type();
    let is_extension = matches!(
        kind,
        EntryType::XGlobalHeader | EntryType::XHeader | EntryType::GNULongName | EntryType::GNULongLink
    );
    let has_data = !matches!(
        kind,
        EntryType::Link
            | EntryType::Symlink
            | EntryType::Char
            | EntryType::Block
            | EntryType::Directory
            | EntryType::Fifo
    );
    if !has_data {
        return Ok(0);
    }
    let in_records = if is_extension { None } else { number(records, b"size")? };
    in_records.map_or_else(|| header.entry_size(), Ok)
}

fn until_zero(mut bytes: Vec<u8>) -> Vec<u8> {
    if let Some(end) = bytes.iter().position(|byte| *byte == 0) {
        bytes.truncate(end);
    }
    bytes
}

#[cfg(test)]
#[path = "reader_tests.rs"]
mod tests;
