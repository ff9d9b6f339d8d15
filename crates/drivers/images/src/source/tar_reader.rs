//! Reads tar streams of strangers: ustar, GNU (long names, sparse files) and pax.
//!
//! The `tar` crate decodes the header fields; walking from entry to entry is ours, because extension records must be bounded
//! before they are read into memory, and sparse files must keep their holes.

use std::collections::BTreeMap;
use std::io::{self, Read};

use microvm_durable::error::bad_input;
use microvm_ports::StorageError;
use tar::{EntryType, GnuExtSparseHeader, Header};

use crate::erofs::{Xattr, is_wanted_xattr};

const BLOCK: u64 = 512;
/// Largest extension record (pax header, long name) that is read.
const EXTENSION_MAX: u64 = 1 << 20;
/// Most bytes of names and values of all global pax headers together: they apply to, and are copied for, every entry.
/// (`git archive` writes one of 52 bytes.)
const GLOBAL_MAX: usize = 64 << 10;
/// Most parts of one sparse file.
const SEGMENTS_MAX: usize = 1 << 20;

/// One entry; its data is read through [`TarReader`] itself until the next entry is asked for.
#[derive(Debug)]
pub(crate) struct TarEntry {
    pub(crate) path: Vec<u8>,
    pub(crate) link: Vec<u8>,
    pub(crate) kind: EntryType,
    pub(crate) mode: u16,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) modified: i64,
    pub(crate) modified_ns: u32,
    pub(crate) device: (u32, u32),
    /// Length of the file as it shows itself.
    pub(crate) size: u64,
    /// For sparse files: where the stored bytes belong.
    pub(crate) segments: Option<Vec<(u64, u64)>>,
    pub(crate) xattrs: Vec<Xattr>,
}

/// Record with the map of a sparse file.
const MAP: &[u8] = b"GNU.sparse.map";

type Records = BTreeMap<Vec<u8>, Vec<u8>>;

/// Walks over a stream. Reading from it gives the data of the present entry.
pub(crate) struct TarReader<'a, R> {
    what: &'a str,
    reader: R,
    /// Data of the present entry still to come.
    left: u64,
    padding: u64,
    global: Records,
    ended: bool,
    /// Whether the blocks of zeros at the end must be there.
    strict: bool,
}

impl<R: Read> Read for TarReader<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let wanted = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        let count = self.reader.read(&mut buffer[..wanted])?;
        self.left -= count as u64;
        Ok(count)
    }
}

impl<'a, R: Read> TarReader<'a, R> {
    /// `what` names the archive in errors.
    pub(crate) fn new(what: &'a str, reader: R) -> Self {
        Self { what, reader, left: 0, padding: 0, global: Records::new(), ended: false, strict: false }
    }

    /// Refuses an archive without its end mark: it was cut between two entries. Not for layers, which have a digest, and whose
    /// makers sometimes leave the mark out.
    pub(crate) const fn strict(mut self) -> Self {
        self.strict = true;
        self
    }

    /// The next entry, after skipping what was not read of the last; `None` at the end.
    pub(crate) fn next_entry(&mut self) -> Result<Option<TarEntry>, StorageError> {
        let mut records = Records::new();
        let mut long_path = None;
        let mut long_link = None;
        loop {
            self.skip_rest()?;
            let Some(header) = self.header()? else { return Ok(None) };
            let kind = header.entry_type();
            let mut stored = header.entry_size().map_err(|error| self.bad(error))?;
            let local = !matches!(
                kind,
                EntryType::XGlobalHeader
                    | EntryType::XHeader
                    | EntryType::GNULongName
                    | EntryType::GNULongLink
            );
            if let (true, Some(size)) = (local, number(&records, b"size")) {
                stored = size;
            }
            if !kind_has_data(kind) {
                stored = 0;
            }
            self.padding = padding(stored)
                .ok_or_else(|| self.bad(format!("an entry in it claims to have {stored} bytes")))?;
            self.left = stored;
            match kind {
                EntryType::XGlobalHeader => {
                    let more = self.pax()?;
                    self.global.extend(more);
                    let held: usize = self.global.iter().map(|(name, value)| name.len() + value.len()).sum();
                    if held > GLOBAL_MAX {
                        return Err(self.bad(format!(
                            "its global headers have {held} bytes; at most {GLOBAL_MAX} are taken"
                        )));
                    }
                }
                EntryType::XHeader => {
                    records = {
                        let mut all = self.global.clone();
                        all.extend(self.pax()?);
                        all
                    }
                }
                EntryType::GNULongName => long_path = Some(until_zero(self.extension()?)),
                EntryType::GNULongLink => long_link = Some(until_zero(self.extension()?)),
                _ => {
                    if records.is_empty() {
                        records.clone_from(&self.global);
                    }
                    return self.entry(&header, kind, stored, &records, long_path, long_link).map(Some);
                }
            }
        }
    }

    /// Reads what follows the end, so that a checksum over the whole stream can be compared.
    pub(crate) fn drain(mut self) -> Result<(), StorageError> {
        self.skip_rest()?;
        io::copy(&mut self.reader, &mut io::sink()).map_err(|error| self.bad(error))?;
        Ok(())
    }

    fn bad(&self, detail: impl ToString) -> StorageError {
        bad_input(self.what, detail.to_string())
    }

    fn skip_rest(&mut self) -> Result<(), StorageError> {
        let rest = self.left + self.padding;
        let skipped = io::copy(&mut self.reader.by_ref().take(rest), &mut io::sink())
            .map_err(|error| self.bad(error))?;
        (self.left, self.padding) = (0, 0);
        // The padding of the very last entry may be missing; a header that is cut short is found when it is read.
        if skipped + BLOCK <= rest {
            return Err(self.bad("it ends in the middle of an entry"));
        }
        Ok(())
    }

    fn header(&mut self) -> Result<Option<Header>, StorageError> {
        if self.ended {
            return Ok(None);
        }
        let mut header = Header::new_old();
        let mut filled = 0;
        while filled < header.as_bytes().len() {
            let count =
                self.reader.read(&mut header.as_mut_bytes()[filled..]).map_err(|error| self.bad(error))?;
            if count == 0 {
                self.ended = true;
                return match (filled, self.strict) {
                    (0, false) => Ok(None),
                    (0, true) => Err(self.bad("it ends without its end mark: it was cut off")),
                    _ => Err(self.bad("it ends in the middle of a header")),
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
            return Err(self.bad("it is not a tar archive, or is damaged: a header has a wrong checksum"));
        }
        Ok(Some(header))
    }

    fn extension(&mut self) -> Result<Vec<u8>, StorageError> {
        if self.left > EXTENSION_MAX {
            return Err(self.bad(format!(
                "it has an extension header of {} bytes; at most {EXTENSION_MAX} are read",
                self.left
            )));
        }
        let expected = self.left;
        let mut bytes = Vec::new();
        self.by_ref().read_to_end(&mut bytes).map_err(|error| self.bad(error))?;
        if bytes.len() as u64 != expected {
            return Err(self.bad("it ends in the middle of an extension header"));
        }
        Ok(bytes)
    }

    fn pax(&mut self) -> Result<Records, StorageError> {
        let bytes = self.extension()?;
        pax_records(&bytes).ok_or_else(|| self.bad("it has a pax header that cannot be read"))
    }

    fn entry(
        &mut self,
        header: &Header,
        kind: EntryType,
        stored: u64,
        records: &Records,
        long_path: Option<Vec<u8>>,
        long_link: Option<Vec<u8>>,
    ) -> Result<TarEntry, StorageError> {
        let mut entry = TarEntry {
            path: records
                .get(b"path".as_slice())
                .cloned()
                .or(long_path)
                .unwrap_or_else(|| header.path_bytes().into_owned()),
            link: records
                .get(b"linkpath".as_slice())
                .cloned()
                .or(long_link)
                .or_else(|| header.link_name_bytes().map(std::borrow::Cow::into_owned))
                .unwrap_or_default(),
            kind,
            mode: u16::try_from(header.mode().map_err(|error| self.bad(error))? & 0o7777).unwrap_or(0),
            uid: self.id(number(records, b"uid").or_else(|| header.uid().ok()))?,
            gid: self.id(number(records, b"gid").or_else(|| header.gid().ok()))?,
            modified: modified(header),
            modified_ns: 0,
            device: (
                header.device_major().ok().flatten().unwrap_or(0),
                header.device_minor().ok().flatten().unwrap_or(0),
            ),
            size: stored,
            segments: None,
            xattrs: xattrs(records),
        };
        if let Some((seconds, nanoseconds)) = records.get(b"mtime".as_slice()).and_then(|text| time(text)) {
            (entry.modified, entry.modified_ns) = (seconds, nanoseconds);
        }
        if kind == EntryType::GNUSparse {
            self.gnu_sparse(header, &mut entry)?;
        } else if kind.is_file() && records.keys().any(|key| key.starts_with(b"GNU.sparse.")) {
            self.pax_sparse(records, &mut entry)?;
        }
        Ok(entry)
    }

    /// A user's or group's number; a header without one means root.
    fn id(&self, value: Option<u64>) -> Result<u32, StorageError> {
        let value = value.unwrap_or(0);
        // The last number means none.
        u32::try_from(value).ok().filter(|id| *id != u32::MAX).ok_or_else(|| {
            self.bad(format!("an entry in it belongs to {value}, which is no user or group of Linux"))
        })
    }

    fn gnu_sparse(&mut self, header: &Header, entry: &mut TarEntry) -> Result<(), StorageError> {
        let gnu = header.as_gnu().ok_or_else(|| self.bad("a sparse file in it has no GNU header"))?;
        entry.size = gnu.real_size().map_err(|error| self.bad(error))?;
        let mut segments = Vec::new();
        let mut add = |block: &tar::GnuSparseHeader| -> io::Result<()> {
            if !block.is_empty() {
                segments.push((block.offset()?, block.length()?));
            }
            Ok(())
        };
        for block in &gnu.sparse {
            add(block).map_err(|error| bad_input(self.what, error.to_string()))?;
        }
        let mut more = gnu.is_extended();
        let mut count = 0;
        while more {
            let mut extension = GnuExtSparseHeader::new();
            self.reader
                .read_exact(extension.as_mut_bytes())
                .map_err(|error| bad_input(self.what, error.to_string()))?;
            for block in &extension.sparse {
                add(block).map_err(|error| bad_input(self.what, error.to_string()))?;
            }
            count += extension.sparse.len();
            if count > SEGMENTS_MAX {
                return Err(self.bad("a sparse file in it has too many parts"));
            }
            more = extension.is_extended();
        }
        self.set_segments(segments, entry)
    }

    /// GNU's sparse files in pax: forms 0.0 and 0.1 have the map in records, 1.0 in front of the data.
    fn pax_sparse(&mut self, records: &Records, entry: &mut TarEntry) -> Result<(), StorageError> {
        entry.size = number(records, b"GNU.sparse.realsize")
            .or_else(|| number(records, b"GNU.sparse.size"))
            .ok_or_else(|| self.bad("a sparse file in it has no size"))?;
        if let Some(name) = records.get(b"GNU.sparse.name".as_slice()) {
            entry.path.clone_from(name);
        }
        match records.get(b"GNU.sparse.major".as_slice()).map_or(&b"0"[..], Vec::as_slice) {
            b"0" => {
                let segments = map_in_records(records)
                    .ok_or_else(|| self.bad("the map of a sparse file in it cannot be read"))?;
                self.set_segments(segments, entry)
            }
            b"1" => self.map_before_data(entry),
            _ => Err(self.bad("it has sparse files of a form that is not known")),
        }
    }

    fn map_before_data(&mut self, entry: &mut TarEntry) -> Result<(), StorageError> {
        let before = self.left;
        let count = self.map_number()?;
        if count > SEGMENTS_MAX as u64 {
            return Err(self.bad("a sparse file in it has too many parts"));
        }
        let mut segments = Vec::new();
        for _ in 0..count {
            segments.push((self.map_number()?, self.map_number()?));
        }
        let used = before - self.left;
        let rest = used.next_multiple_of(BLOCK) - used;
        io::copy(&mut self.by_ref().take(rest), &mut io::sink())
            .map_err(|error| bad_input(self.what, error.to_string()))?;
        self.set_segments(segments, entry)
    }

    fn map_number(&mut self) -> Result<u64, StorageError> {
        let mut value: u64 = 0;
        for _ in 0..21 {
            let mut byte = [0];
            self.read_exact(&mut byte).map_err(|error| bad_input(self.what, error.to_string()))?;
            match byte[0] {
                b'\n' => return Ok(value),
                digit @ b'0'..=b'9' => {
                    value = value
                        .checked_mul(10)
                        .and_then(|v| v.checked_add(u64::from(digit - b'0')))
                        .ok_or_else(|| self.bad("a number in it is too large"))?;
                }
                _ => break,
            }
        }
        Err(self.bad("the map of a sparse file in it cannot be read"))
    }

    fn set_segments(&self, segments: Vec<(u64, u64)>, entry: &mut TarEntry) -> Result<(), StorageError> {
        let mut end: u64 = 0;
        let mut stored: u64 = 0;
        for (offset, length) in &segments {
            let next = offset.checked_add(*length).filter(|next| *offset >= end && *next <= entry.size);
            end = next.ok_or_else(|| {
                self.bad("a sparse file in it has parts that overlap or lie behind its end")
            })?;
            stored += length;
        }
        if stored != self.left {
            return Err(self.bad("a sparse file in it has less or more data than it says"));
        }
        entry.segments = Some(segments);
        Ok(())
    }
}

const fn kind_has_data(kind: EntryType) -> bool {
    !matches!(
        kind,
        EntryType::Link
            | EntryType::Symlink
            | EntryType::Char
            | EntryType::Block
            | EntryType::Directory
            | EntryType::Fifo
    )
}

/// Bytes behind the data of an entry up to the next block; `None` if its end is beyond every number.
fn padding(stored: u64) -> Option<u64> {
    // As signed offsets are: no file can be longer.
    (stored <= i64::MAX as u64).then(|| stored.next_multiple_of(BLOCK) - stored)
}

fn until_zero(mut bytes: Vec<u8>) -> Vec<u8> {
    if let Some(end) = bytes.iter().position(|byte| *byte == 0) {
        bytes.truncate(end);
    }
    bytes
}

fn number(records: &Records, key: &[u8]) -> Option<u64> {
    std::str::from_utf8(records.get(key)?).ok()?.parse().ok()
}

/// The map of a sparse file as forms 0.0 and 0.1 have it.
fn map_in_records(records: &Records) -> Option<Vec<(u64, u64)>> {
    let text = records.get(MAP).map_or(&b""[..], Vec::as_slice);
    let numbers: Vec<u64> = text
        .split(|byte| *byte == b',')
        .filter(|_| !text.is_empty())
        .map(|number| std::str::from_utf8(number).ok()?.parse().ok())
        .collect::<Option<_>>()?;
    let (pairs, rest) = numbers.as_chunks::<2>();
    let whole = rest.is_empty() && number(records, b"GNU.sparse.numblocks") == Some(pairs.len() as u64);
    whole.then(|| pairs.iter().map(|[offset, length]| (*offset, *length)).collect())
}

/// The time in a header. GNU tar writes one before 1970 as a number in base 256 whose first bits are set.
fn modified(header: &Header) -> i64 {
    let field = &header.as_old().mtime;
    if field[0] == 0xff {
        return field.iter().fold(-1, |time: i64, byte| time.wrapping_shl(8) | i64::from(*byte));
    }
    header.mtime().ok().and_then(|time| i64::try_from(time).ok()).unwrap_or(0)
}

/// Seconds with an optional fraction, as pax writes times.
fn time(text: &[u8]) -> Option<(i64, u32)> {
    let text = std::str::from_utf8(text).ok()?;
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
    let digits: String = fraction.chars().chain("000000000".chars()).take(9).collect();
    let (seconds, nanoseconds): (i64, u32) = (seconds.parse().ok()?, digits.parse().ok()?);
    // Before 1970 the fraction counts downwards, and what file systems store counts upwards.
    Some(if text.starts_with('-') && nanoseconds > 0 {
        (seconds.checked_sub(1)?, 1_000_000_000 - nanoseconds)
    } else {
        (seconds, nanoseconds)
    })
}

fn xattrs(records: &Records) -> Vec<Xattr> {
    records
        .iter()
        .filter_map(|(key, value)| Some((key.strip_prefix(b"SCHILY.xattr.")?, value)))
        .filter(|(name, _)| is_wanted_xattr(name))
        .map(|(name, value)| Xattr { name: name.to_vec(), value: value.clone() })
        .collect()
}

/// `length key=value\n` records; lengths count bytes, values may hold anything.
fn pax_records(mut bytes: &[u8]) -> Option<Records> {
    let mut records = Records::new();
    while !bytes.is_empty() && bytes[0] != 0 {
        let space = bytes.iter().take(20).position(|byte| *byte == b' ')?;
        let length: usize = std::str::from_utf8(&bytes[..space]).ok()?.parse().ok()?;
        let record = bytes.get(space + 1..length)?.strip_suffix(b"\n")?;
        let equals = record.iter().position(|byte| *byte == b'=')?;
        let (key, value) = (&record[..equals], &record[equals + 1..]);
        if matches!(key, b"GNU.sparse.offset" | b"GNU.sparse.numbytes") {
            // Form 0.0 repeats these two; the next form has them in one record.
            let map = records.entry(MAP.to_vec()).or_default();
            if !map.is_empty() {
                map.push(b',');
            }
            map.extend_from_slice(value);
        } else {
            records.insert(key.to_vec(), value.to_vec());
        }
        bytes = &bytes[length..];
    }
    Some(records)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn walk(bytes: &[u8]) -> Result<Vec<TarEntry>, StorageError> {
        let mut reader = TarReader::new("test", bytes);
        let mut entries = Vec::new();
        while let Some(entry) = reader.next_entry()? {
            entries.push(entry);
        }
        reader.drain()?;
        Ok(entries)
    }

    proptest! {
        #[test]
        fn any_bytes_are_answered_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..2048)) {
            let _ = walk(&bytes);
        }

        #[test]
        fn damaged_archives_are_answered_without_panic(at in 0usize..4096, value in any::<u8>()) {
            let mut builder = tar::Builder::new(Vec::new());
            let mut header = Header::new_gnu();
            header.set_size(700);
            header.set_mode(0o644);
            builder.append_data(&mut header, "x".repeat(300), &[1; 700][..]).unwrap();
            let mut bytes = builder.into_inner().unwrap();
            let length = bytes.len();
            bytes[at % length] = value;
            let _ = walk(&bytes);
        }

        #[test]
        fn pax_records_never_panic(bytes in prop::collection::vec(prop::sample::select(b"019 =\nab\0".to_vec()), 0..64)) {
            let _ = pax_records(&bytes);
        }
    }

    #[test]
    fn long_names_and_exact_bytes_survive() {
        let mut builder = tar::Builder::new(Vec::new());
        let name = "d/".repeat(90) + "x";
        let mut header = Header::new_gnu();
        header.set_size(3);
        header.set_mode(0o4755);
        builder.append_data(&mut header, &name, &b"abc"[..]).unwrap();
        let entries = walk(&builder.into_inner().unwrap()).unwrap();
        assert_eq!(entries[0].path, name.as_bytes());
        assert_eq!((entries[0].size, entries[0].mode), (3, 0o4755));
    }

    #[test]
    fn sizes_beyond_every_number_are_refused() {
        for size in [u64::MAX, u64::MAX - 510, 1 << 63] {
            let mut header = Header::new_ustar();
            header.set_path("x").unwrap();
            header.set_size(size);
            header.set_cksum();
            let error = walk(header.as_bytes()).unwrap_err().to_string();
            assert!(error.contains("claims to have"), "{error}");
            // The same in a pax record.
            let mut builder = tar::Builder::new(Vec::new());
            builder.append_pax_extensions([("size", size.to_string().as_bytes())]).unwrap();
            let mut bytes = builder.into_inner().unwrap();
            bytes.truncate(1024);
            header.set_size(0);
            header.set_cksum();
            bytes.extend(header.as_bytes());
            assert!(walk(&bytes).unwrap_err().to_string().contains("claims to have"));
        }
    }

    #[test]
    fn times_before_1970_are_read() {
        assert_eq!(time(b"-0.25"), Some((-1, 750_000_000)));
        assert_eq!(time(b"-86400"), Some((-86_400, 0)));
        assert_eq!(time(b"7.000000001"), Some((7, 1)));
        let mut header = Header::new_gnu();
        header.as_old_mut().mtime = [0xff; 12];
        assert_eq!(modified(&header), -1);
        header.as_old_mut().mtime[10] = 0xfe;
        assert_eq!(modified(&header), -257);
    }

    #[test]
    fn a_cut_archive_is_refused() {
        let mut builder = tar::Builder::new(Vec::new());
        let mut header = Header::new_gnu();
        header.set_size(5000);
        builder.append_data(&mut header, "x", &[1; 5000][..]).unwrap();
        let bytes = builder.into_inner().unwrap();
        assert!(walk(&bytes[..3000]).is_err());
        assert!(walk(&bytes[..100]).is_err());
    }
}
