//! Sparse files in tar archives: GNU sparse format 1.0 in pax, as GNU tar documents it ("Storing Sparse Files").
//!
//! ```text
//! pax records   GNU.sparse.major=1 .minor=0 .name=NAME .realsize=BYTES
//! header        of a regular file; its name is a stand-in, its size is that of map and data
//! map           decimal numbers, each with a newline: how many segments, then offset and length of each; the last one ends
//!               where the file does, of length 0 if need be; NUL up to 512
//! data          of the segments, one after the other; all else of the file is zeros
//! ```
//!
//! Not here: reading and writing files and archives.

use std::io::{self, Read};

/// Most segments of one file; 16 bytes of memory each.
pub const MAX_SEGMENTS: usize = 1 << 18;
/// Segments begin and end at multiples of this, the end of a file aside: readers may take data block by block.
const BLOCK: u64 = 512;
/// The same, for memory.
const BLOCK_LENGTH: usize = 512;
/// Most digits of a number in a map: those of the largest file.
const DIGITS: usize = 19;

/// A stretch of data in a sparse file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// Offset of its first byte in the file.
    pub offset: u64,
    /// Bytes.
    pub length: u64,
}

/// Where a file has data: in order, without overlaps, within its size, which is that of a possible file (below 2^63).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SparseMap {
    size: u64,
    segments: Vec<Segment>,
}

/// Description of a sparse file in the pax records of its entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SparseEntry {
    /// Its name.
    pub name: Vec<u8>,
    /// Bytes of the file, zeros included; below 2^63.
    pub size: u64,
}

/// Gathers the pax records of an entry.
#[derive(Debug, Clone, Default)]
pub struct SparseRecords {
    version: [Option<Vec<u8>>; 2],
    name: Option<Vec<u8>>,
    size: Option<Vec<u8>>,
    /// Any record of sparse files, of whatever version.
    any: bool,
}

fn bad(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.to_owned())
}

impl SparseRecords {
    /// Takes in a record, if it is about sparse files.
    pub fn take_in(&mut self, key: &[u8], value: &[u8]) {
        let Some(key) = key.strip_prefix(b"GNU.sparse.") else { return };
        self.any = true;
        let place = match key {
            b"major" => &mut self.version[0],
            b"minor" => &mut self.version[1],
            b"name" => &mut self.name,
            b"realsize" => &mut self.size,
            _ => return,
        };
        *place = Some(value.to_vec());
    }

    /// The description; `None` if the entry is no sparse file.
    ///
    /// # Errors
    /// Another version than 1.0, and records that are missing or no numbers.
    pub fn finish(self) -> io::Result<Option<SparseEntry>> {
        if !self.any {
            return Ok(None);
        }
        if self.version != [Some(b"1".to_vec()), Some(b"0".to_vec())] {
            return Err(bad("a sparse file is in another form than GNU's version 1.0: pack it with \
                 --sparse-version=1.0"));
        }
        let size = self.size.and_then(|digits| number(&digits));
        let size = size.ok_or_else(|| bad("a sparse file does not say how long it is"))?;
        let name = self.name.filter(|name| !name.is_empty());
        let name = name.ok_or_else(|| bad("a sparse file has no name"))?;
        Ok(Some(SparseEntry { name, size }))
    }
}

/// A decimal number below 2^63, as offsets of files are.
fn number(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let number: u64 = std::str::from_utf8(digits).ok()?.parse().ok()?;
    i64::try_from(number).is_ok().then_some(number)
}

impl SparseMap {
    /// Finds where a file of `size` bytes has data, of which so many `blocks` are on the disk, 512 bytes each (`st_blocks` of
    /// stat(2)). `data` and `hole` say where the next stretch of data or the next hole begins from an offset on, as lseek(2)
    /// does; `None`: nowhere before the end of the file.
    ///
    /// Returns `None` if the file is to be packed as any other: it has no holes that would make up for the map; or a seek has
    /// failed. Where the disk cannot say what is data all of it is: reading it then fails, and zeros would not.
    pub fn find<E>(
        size: u64,
        blocks: u64,
        mut data: impl FnMut(u64) -> Result<Option<u64>, E>,
        mut hole: impl FnMut(u64) -> Result<Option<u64>, E>,
    ) -> Option<Self> {
        if blocks.saturating_mul(512) >= size {
            return None;
        }
        let mut segments: Vec<Segment> = Vec::new();
        let mut position = 0;
        while position < size {
            let found = data(position).ok()?;
            let Some(begin) = found.filter(|begin| (position..size).contains(begin)) else { break };
            // What would be too many segments becomes one, zeros and all.
            let last = segments.len() + 1 == MAX_SEGMENTS;
            let found = hole(begin).ok()?;
            let end = found.filter(|end| !last && (begin + 1..size).contains(end)).unwrap_or(size);
            let (begin, end) = (begin / BLOCK * BLOCK, end.next_multiple_of(BLOCK).min(size));
            match segments.last_mut().filter(|before| before.offset + before.length >= begin) {
                Some(before) => before.length = end - before.offset,
                None => segments.push(Segment { offset: begin, length: end - begin }),
            }
            position = end;
        }
        let map = Self { size, segments };
        // The extension and its header take two blocks, the map one and more.
        (size < 1 << 63 && map.stored() + map.encode().len() as u64 + 2 * BLOCK < size).then_some(map)
    }

    /// Reads the map in front of the data of an entry; returns also how many bytes it took.
    ///
    /// # Errors
    /// Those of the reader, and of a map that cannot be read or is not that of a file of `size` bytes.
    pub fn read(data: &mut impl Read, size: u64) -> io::Result<(Self, u64)> {
        let mut numbers = Numbers { data, block: [0; BLOCK_LENGTH], at: BLOCK_LENGTH, blocks: 0 };
        let count = usize::try_from(numbers.next()?).ok().filter(|count| *count <= MAX_SEGMENTS + 1);
        let count = count.ok_or_else(|| bad("a sparse file has too many parts"))?;
        let (mut segments, mut end) = (Vec::new(), 0u64);
        for _ in 0..count {
            let (offset, length) = (numbers.next()?, numbers.next()?);
            // Neither is above 2^63: the sum does not wrap.
            if offset < end || offset + length > size {
                return Err(bad("a sparse file has parts that overlap or lie behind its end"));
            }
            end = offset + length;
            if length > 0 {
                segments.push(Segment { offset, length });
            }
        }
        Ok((Self { size, segments }, numbers.blocks * BLOCK))
    }

    /// The stretches of data, in order.
    #[must_use]
    pub fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// Bytes of the file, zeros included.
    #[must_use]
    pub const fn size(&self) -> u64 {
        self.size
    }

    /// Bytes of data in all segments.
    #[must_use]
    pub fn stored(&self) -> u64 {
        self.segments.iter().map(|segment| segment.length).sum()
    }

    /// The map as it stands in front of the data: a whole number of blocks of 512 bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        use std::fmt::Write as _;
        // GNU tar takes the end of the last segment for the end of the file.
        let last = Segment { offset: self.size, length: 0 };
        let ends = self.segments.last().is_some_and(|segment| segment.offset + segment.length == self.size);
        let segments = self.segments.iter().chain((!ends).then_some(&last));
        let mut text = format!("{}\n", segments.clone().count());
        for Segment { offset, length } in segments {
            // Writing to a string cannot fail.
            let _ = write!(text, "{offset}\n{length}\n");
        }
        let mut map = text.into_bytes();
        map.resize(map.len().next_multiple_of(BLOCK_LENGTH), 0);
        map
    }

    /// Pax records of an entry with this name.
    #[must_use]
    pub fn records(&self, name: &[u8]) -> [(&'static str, Vec<u8>); 4] {
        [
            ("GNU.sparse.major", b"1".to_vec()),
            ("GNU.sparse.minor", b"0".to_vec()),
            ("GNU.sparse.name", name.to_vec()),
            ("GNU.sparse.realsize", self.size.to_string().into_bytes()),
        ]
    }
}

/// The name in the header of a sparse entry, at most 100 bytes: programs that do not know the format unpack map and data there,
/// instead of something wrong under the name of the file.
#[must_use]
pub fn stand_in(name: &[u8]) -> Vec<u8> {
    let last = name.rsplit(|byte| *byte == b'/').next().unwrap_or(name);
    [b"GNUSparseFile.0/", &last[..last.len().min(80)]].concat()
}

/// Numbers of a map, block by block.
struct Numbers<'a, R> {
    data: &'a mut R,
    block: [u8; BLOCK_LENGTH],
    at: usize,
    blocks: u64,
}

impl<R: Read> Numbers<'_, R> {
    fn next(&mut self) -> io::Result<u64> {
        let mut digits = Vec::with_capacity(DIGITS);
        loop {
            if self.at == self.block.len() {
                self.data.read_exact(&mut self.block)?;
                (self.at, self.blocks) = (0, self.blocks + 1);
            }
            let byte = self.block[self.at];
            self.at += 1;
            if byte == b'\n' {
                break;
            }
            if digits.len() == DIGITS {
                return Err(bad("the map of a sparse file cannot be read"));
            }
            digits.push(byte);
        }
        number(&digits).ok_or_else(|| bad("the map of a sparse file cannot be read"))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The map of a file with data in these ranges.
    fn found(size: u64, ranges: &[(u64, u64)]) -> Option<SparseMap> {
        found_until(size, ranges, usize::MAX)
    }

    /// As [`found`], on a disk of which so many seeks go well.
    fn found_until(size: u64, ranges: &[(u64, u64)], good: usize) -> Option<SparseMap> {
        let seeks = std::cell::Cell::new(0);
        let seek = |place: Option<u64>| {
            seeks.set(seeks.get() + 1);
            if seeks.get() > good { Err("the disk fails") } else { Ok(place) }
        };
        let range = |from: u64| ranges.iter().find(|range| range.1 > from);
        let data = |from| seek(range(from).map(|range| range.0.max(from)));
        let hole = |from| seek(range(from).map(|range| range.1));
        SparseMap::find(size, 0, data, hole)
    }

    #[test]
    fn where_a_seek_fails_all_of_a_file_is_data() {
        let ranges = [(4096, 8192), (65_536, 69_632)];
        // Data and hole of each, and that there is no more.
        for good in 0..5 {
            assert_eq!(found_until(1 << 20, &ranges, good), None, "{good} seeks went well");
        }
        assert_eq!(found_until(1 << 20, &ranges, 5), found(1 << 20, &ranges));
        assert!(found(1 << 20, &ranges).is_some());
    }

    #[test]
    fn a_map_is_what_gnu_tar_writes() {
        let map = found(1 << 20, &[(4096, 8192), ((1 << 20) - 5, 1 << 20)]).unwrap();
        // `tar -S --format=posix` of GNU tar 1.34 for such a file.
        let text = b"2\n4096\n4096\n1048064\n512\n";
        assert_eq!(map.encode()[..text.len()], *text);
        assert_eq!((map.encode().len(), map.stored(), map.size()), (512, 4608, 1 << 20));
        let map = found(1 << 20, &[(0, 512)]).unwrap();
        assert!(map.encode().starts_with(b"2\n0\n512\n1048576\n0\n\0"));
        assert_eq!(stand_in(b"a/b/name"), b"GNUSparseFile.0/name");
        assert!(stand_in(&[b'x'; 5000]).len() <= 100);
    }

    #[test]
    fn files_without_holes_are_packed_as_any_other() {
        assert_eq!(found(1 << 20, &[(0, 1 << 20)]), None);
        assert_eq!(found(0, &[]), None);
        assert_eq!(found(1024, &[]), None);
        assert_eq!(SparseMap::find(9000, 0, |_| Ok::<_, ()>(Some(0)), |_| Ok(None)), None);
        let holes = SparseMap::find(1 << 20, 2048, |_| Ok::<_, ()>(None), |_| Ok(None));
        assert_eq!(holes, None, "all of it is on the disk");
        assert_eq!(found(1 << 40, &[]).unwrap().segments(), []);
    }

    #[test]
    fn too_many_segments_become_one_at_the_end() {
        let size = (MAX_SEGMENTS as u64 + 100) * 8192;
        let data = |from: u64| Ok::<_, ()>(Some(from.next_multiple_of(8192)));
        let hole = |from: u64| Ok(Some(from + 4096));
        let map = SparseMap::find(size, 0, data, hole).unwrap();
        assert_eq!(map.segments().len(), MAX_SEGMENTS);
        let last = map.segments().last().unwrap();
        assert_eq!(last.offset + last.length, size);
        assert_eq!(SparseMap::read(&mut &map.encode()[..], size).unwrap().0, map);
    }

    #[test]
    fn maps_that_are_wrong_are_refused() {
        let read = |text: &str| {
            let mut map = text.as_bytes().to_vec();
            map.resize(map.len().next_multiple_of(512), 0);
            SparseMap::read(&mut &map[..], 1000)
        };
        assert_eq!(read("1\n500\n500\n").unwrap().1, 512);
        for wrong in [
            "1\n501\n500\n",
            "2\n0\n10\n9\n1\n",
            "1\n\n500\n",
            "1\n-1\n5\n",
            "x\n",
            "2\n0\n1\n",
            "9223372036854775807\n",
            "99999999999999999999\n",
            "1\n9223372036854775807\n9223372036854775807\n",
        ] {
            assert!(read(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn other_versions_are_told_from_plain_files() {
        let records = |records: &[(&str, &str)]| {
            let mut all = SparseRecords::default();
            for (key, value) in records {
                all.take_in(key.as_bytes(), value.as_bytes());
            }
            all.finish()
        };
        assert_eq!(records(&[("path", "x"), ("mtime", "1")]).unwrap(), None);
        let map = found(1 << 20, &[]).unwrap();
        let whole = map.records(b"some/name").map(|(key, value)| (key, String::from_utf8(value).unwrap()));
        let whole: Vec<(&str, &str)> = whole.iter().map(|(key, value)| (*key, value.as_str())).collect();
        let entry = SparseEntry { name: b"some/name".to_vec(), size: 1 << 20 };
        assert_eq!(records(&whole).unwrap(), Some(entry));
        // Versions 0.0 and 0.1.
        assert!(records(&[("GNU.sparse.size", "5"), ("GNU.sparse.numblocks", "0")]).is_err());
        assert!(records(&[("GNU.sparse.name", "x"), ("GNU.sparse.map", "0,5")]).is_err());
        for missing in 0..whole.len() {
            let mut some = whole.clone();
            some.remove(missing);
            assert!(records(&some).is_err(), "without {}", whole[missing].0);
        }
    }

    proptest! {
        #[test]
        fn a_map_covers_all_data_and_comes_back(
            lengths in prop::collection::vec((1u64..20_000, 1u64..20_000), 0..20),
            tail in 0u64..5000,
        ) {
            let (mut ranges, mut at) = (Vec::new(), 0);
            for (hole, data) in lengths {
                ranges.push((at + hole, at + hole + data));
                at += hole + data;
            }
            let size = at + tail;
            if let Some(map) = found(size, &ranges) {
                let (read, used) = SparseMap::read(&mut &map.encode()[..], size).unwrap();
                prop_assert_eq!(&read, &map);
                prop_assert_eq!(used, map.encode().len() as u64);
                for (begin, end) in ranges {
                    prop_assert!(map.segments().iter().any(|s| s.offset <= begin && end <= s.offset + s.length));
                }
            }
        }

        #[test]
        fn no_bytes_make_it_panic(bytes: Vec<u8>, size: u64) {
            let _ = SparseMap::read(&mut &bytes[..], size);
        }
    }
}
