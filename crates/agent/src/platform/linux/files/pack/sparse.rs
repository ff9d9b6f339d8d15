//! Files with holes: a map, then their data.

use std::fs::{File, Metadata};
use std::os::fd::AsFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use microvm_archive::sparse_map::{Segment, SparseMap};
use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;
use tar::Header;

use super::{BLOCK, Packer, header};
use crate::core::failure::AgentResult;

/// Map of the data of a file; `None` if it is to be packed as any other.
pub(super) fn map(file: &File, metadata: &Metadata) -> Option<SparseMap> {
    let next = |from: SeekFrom| match seek(file.as_fd(), from) {
        Ok(place) => Ok(Some(place)),
        Err(Errno::NXIO) => Ok(None),
        Err(error) => Err(error),
    };
    let (size, blocks) = (metadata.len(), metadata.blocks());
    let data = |from| next(SeekFrom::Data(from));
    SparseMap::find(size, blocks, data, |from| next(SeekFrom::Hole(from)))
}

impl Packer<'_> {
    /// Packs a file by its map. What changes meanwhile is as torn as in any file that is copied while it is written.
    pub(super) fn sparse(
        &mut self,
        file: &File,
        path: &Path,
        header: Header,
        entry: &header::Entry<'_>,
        map: &SparseMap,
    ) -> AgentResult<()> {
        header::append(&mut self.pending, header, entry);
        self.pending.extend(map.encode());
        self.flush()?;
        let mut missing = 0;
        for Segment { offset, length } in map.segments() {
            let end = offset + length;
            // Beyond the end of a file that became shorter nothing is read.
            let sent = self.sender.file(file, path, *offset, end)?.clamp(*offset, end);
            self.sender.zeros(end - sent)?;
            missing += end - sent;
        }
        self.shortened(path, missing);
        let padding = map.stored().next_multiple_of(BLOCK) - map.stored();
        self.pending.extend(std::iter::repeat_n(0, usize::try_from(padding).unwrap_or(0)));
        Ok(())
    }
}
