//! Files with holes in a tar stream.

use std::fs::{File, Metadata};
use std::io::{self, Cursor, Read};
use std::os::fd::AsFd as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::Path;

use microvm_archive::sparse_map::{Segment, SparseMap};
use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;

/// Map of the data of a file; `None` if it is to be packed as any other.
pub(super) fn map(file: &File, metadata: &Metadata) -> Option<SparseMap> {
    let next = |from: SeekFrom| match seek(file.as_fd(), from) {
        Ok(place) => Ok(Some(place)),
        Err(Errno::NXIO) => Ok(None),
        Err(error) => Err(error),
    };
    let (size, blocks) = (metadata.len(), metadata.blocks());
    let data = |from| next(SeekFrom::Data(from));
    let map = SparseMap::find(size, blocks, data, |from| next(SeekFrom::Hole(from)));
    // Whoever reads it the ordinary way begins at its begin.
    next(SeekFrom::Start(0)).ok().and(map)
}

/// The content of an entry: the map, then the data of all segments.
pub(super) struct Data<'a> {
    map: Cursor<Vec<u8>>,
    file: &'a File,
    segments: std::slice::Iter<'a, Segment>,
    current: Segment,
    path: &'a Path,
}

impl<'a> Data<'a> {
    pub(super) fn new(file: &'a File, map: &'a SparseMap, path: &'a Path) -> Self {
        Self {
            map: Cursor::new(map.encode()),
            file,
            segments: map.segments().iter(),
            current: Segment { offset: 0, length: 0 },
            path,
        }
    }
}

impl Read for Data<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.map.read(buffer)?;
        if count > 0 || buffer.is_empty() {
            return Ok(count);
        }
        while self.current.length == 0 {
            match self.segments.next() {
                Some(segment) => self.current = *segment,
                None => return Ok(0),
            }
        }
        let room = usize::try_from(self.current.length).unwrap_or(usize::MAX).min(buffer.len());
        let count = self.file.read_at(&mut buffer[..room], self.current.offset)?;
        if count == 0 {
            return Err(super::shortened(self.path));
        }
        self.current.offset += count as u64;
        self.current.length -= count as u64;
        Ok(count)
    }
}
