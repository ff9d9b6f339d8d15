//! Writing files without the zeros.

use std::fs::File;
use std::io::{Seek as _, SeekFrom, Write as _};

/// Zeros are left out in blocks of this size: that of the page cache and of nearly every file system.
const BLOCK: usize = 4096;

/// Writes a new file; blocks of zeros become holes.
pub(crate) struct SparseWriter {
    file: File,
    length: u64,
    /// Bytes of zeros that were left out since the last write.
    hole: u64,
}

impl SparseWriter {
    /// For an empty file.
    pub(crate) const fn new(file: File) -> Self {
        Self { file, length: 0, hole: 0 }
    }

    /// Bytes so far, zeros included.
    pub(crate) const fn length(&self) -> u64 {
        self.length
    }

    /// Adds zeros at the end, which take no space.
    pub(crate) fn hole(&mut self, count: u64) -> std::io::Result<()> {
        let length = self.length.checked_add(count).filter(|length| i64::try_from(*length).is_ok());
        self.length = length.ok_or_else(|| std::io::Error::from(std::io::ErrorKind::FileTooLarge))?;
        self.hole += count;
        Ok(())
    }

    /// Adds bytes at the end; gives how many of them take space.
    pub(crate) fn write(&mut self, mut data: &[u8]) -> std::io::Result<u64> {
        let mut taken = 0;
        while !data.is_empty() {
            // Blocks are those of the file, not of the pieces in which it arrives.
            let to_border = BLOCK - usize::try_from(self.length % BLOCK as u64).unwrap_or(0);
            let (part, rest) = data.split_at(to_border.min(data.len()));
            data = rest;
            self.length += part.len() as u64;
            // Pieces end anywhere; a part of a block is left out as well, or holes would fray at every piece.
            if part.iter().all(|&byte| byte == 0) {
                self.hole += part.len() as u64;
                continue;
            }
            if self.hole > 0 {
                self.file
                    .seek(SeekFrom::Current(i64::try_from(self.hole).map_err(std::io::Error::other)?))?;
                self.hole = 0;
            }
            self.file.write_all(part)?;
            taken += part.len() as u64;
        }
        Ok(taken)
    }

    /// Gives the file its full length, a hole at its end included.
    pub(crate) fn finish(self) -> std::io::Result<File> {
        if self.hole > 0 {
            self.file.set_len(self.length)?;
        }
        Ok(self.file)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::os::unix::fs::MetadataExt as _;

    use proptest::prelude::*;

    use super::*;

    fn written(parts: &[Vec<u8>]) -> (Vec<u8>, u64) {
        let mut writer = SparseWriter::new(tempfile::tempfile().unwrap());
        for part in parts {
            writer.write(part).unwrap();
        }
        let mut file = writer.finish().unwrap();
        file.rewind().unwrap();
        let mut all = Vec::new();
        file.read_to_end(&mut all).unwrap();
        (all, file.metadata().unwrap().blocks())
    }

    #[test]
    fn zeros_take_no_space() {
        let (all, blocks) = written(&[vec![0; 1 << 20], vec![7; 10], vec![0; 1 << 20]]);
        assert_eq!(all.len(), (2 << 20) + 10);
        assert!(blocks * 512 < 64 * 1024, "{blocks} blocks are taken");
    }

    #[test]
    fn a_hole_longer_than_any_file_is_refused() {
        let mut writer = SparseWriter::new(tempfile::tempfile().unwrap());
        writer.hole(1 << 40).unwrap();
        writer.write(b"end").unwrap();
        assert!(writer.hole(u64::MAX - 5).is_err());
        writer.hole(7).unwrap();
        let metadata = writer.finish().unwrap().metadata().unwrap();
        assert_eq!(metadata.len(), (1 << 40) + 10);
        assert!(metadata.blocks() * 512 < 64 * 1024);
    }

    proptest! {
        #[test]
        fn bytes_are_kept_however_they_arrive(parts in prop::collection::vec(
            prop_oneof![
                (1usize..9000).prop_map(|length| vec![0; length]),
                prop::collection::vec(any::<u8>(), 1..5000),
            ], 0..8)) {
            prop_assert_eq!(written(&parts).0, parts.concat());
        }
    }
}
