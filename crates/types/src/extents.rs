//! Content of files with holes, and its form on the wire: extents.
//!
//! ```text
//! body   = record *
//! record = header [ bytes ]          header: u64, little-endian
//!          bit 63 = 0: so many bytes of data follow
//!          bit 63 = 1: a hole of so many bytes (the other 63 bits); nothing follows
//! ```
//!
//! No record is empty, and the whole content has at most 2^63 - 1 bytes, like any file.

use bytes::{Buf as _, Bytes};

/// Media type of a body of extents.
pub const MEDIA_TYPE: &str = "application/vnd.microvm.extents";

/// Set in the header of a hole.
const HOLE: u64 = 1 << 63;
/// Bytes of a header.
const HEADER: usize = 8;

/// A piece of the content of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// Bytes.
    Data(Bytes),
    /// So many zero bytes, which take no space.
    Hole(u64),
}

impl Content {
    /// Bytes of the file that it stands for.
    #[must_use]
    pub const fn length(&self) -> u64 {
        match self {
            Self::Data(data) => data.len() as u64,
            Self::Hole(count) => *count,
        }
    }

    /// The record of this piece: its header, then the data. Nothing for an empty piece, which has no record.
    pub fn into_record(self) -> impl Iterator<Item = Bytes> {
        let (header, data) = match self {
            Self::Data(data) => (data.len() as u64, data),
            Self::Hole(count) => (if count > 0 { count | HOLE } else { 0 }, Bytes::new()),
        };
        let header = (header > 0).then(|| Bytes::copy_from_slice(&header.to_le_bytes()));
        header.into_iter().chain((!data.is_empty()).then_some(data))
    }
}

/// Why a body cannot be read as extents.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ExtentsError {
    /// A record of nothing.
    #[error("the extents hold an empty record: write none for nothing")]
    Empty,
    /// More than any file can hold.
    #[error("the extents are longer than any file: at most 2^63 - 1 bytes")]
    TooLong,
    /// The body ends within a record.
    #[error("the extents end in the middle of a record: send the body to its end")]
    Truncated,
}

/// Reads extents as they arrive, however they are cut.
#[derive(Debug, Clone, Default)]
pub struct ExtentsReader {
    header: [u8; HEADER],
    /// Bytes of the header that are there.
    have: usize,
    /// Data of the current record that is still to come.
    left: u64,
    /// Bytes of content in all records so far, the current one included.
    total: u64,
}

impl ExtentsReader {
    /// The next piece in `input`, which is taken out of it; `None` once there is no more, then `input` is empty.
    ///
    /// # Errors
    /// [`ExtentsError::Empty`] and [`ExtentsError::TooLong`]; nothing more can be read then.
    pub fn next(&mut self, input: &mut Bytes) -> Result<Option<Content>, ExtentsError> {
        while self.left == 0 {
            let part = input.split_to(input.len().min(HEADER - self.have));
            self.header[self.have..self.have + part.len()].copy_from_slice(&part);
            self.have += part.len();
            if self.have < HEADER {
                return Ok(None);
            }
            self.have = 0;
            let header = u64::from_le_bytes(self.header);
            let length = header & !HOLE;
            if length == 0 {
                return Err(ExtentsError::Empty);
            }
            // Both are below 2^63: the sum does not wrap.
            self.total += length;
            if self.total >= HOLE {
                return Err(ExtentsError::TooLong);
            }
            if header & HOLE != 0 {
                return Ok(Some(Content::Hole(length)));
            }
            self.left = length;
        }
        if !input.has_remaining() {
            return Ok(None);
        }
        let data = input.split_to(usize::try_from(self.left).unwrap_or(usize::MAX).min(input.len()));
        self.left -= data.len() as u64;
        Ok(Some(Content::Data(data)))
    }

    /// Bytes of content, at the end of the body.
    ///
    /// # Errors
    /// [`ExtentsError::Truncated`] if it is not the end.
    pub const fn finish(&self) -> Result<u64, ExtentsError> {
        if self.have == 0 && self.left == 0 { Ok(self.total) } else { Err(ExtentsError::Truncated) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(body: &[u8], cut: usize) -> Result<(Vec<Content>, u64), ExtentsError> {
        let (mut reader, mut pieces) = (ExtentsReader::default(), Vec::<Content>::new());
        for part in body.chunks(cut) {
            let mut part = Bytes::copy_from_slice(part);
            while let Some(piece) = reader.next(&mut part)? {
                pieces.push(piece);
            }
            assert!(part.is_empty());
        }
        Ok((pieces, reader.finish()?))
    }

    /// Data and holes, pieces of the same kind joined.
    fn joined(pieces: Vec<Content>) -> Vec<(bool, u64, Vec<u8>)> {
        let mut all: Vec<(bool, u64, Vec<u8>)> = Vec::new();
        for piece in pieces.into_iter().filter(|piece| piece.length() > 0) {
            let (hole, length) = (matches!(piece, Content::Hole(_)), piece.length());
            let data = if let Content::Data(data) = piece { data.to_vec() } else { Vec::new() };
            match all.last_mut().filter(|last| last.0 == hole) {
                Some(last) => {
                    last.1 += length;
                    last.2.extend(data);
                }
                None => all.push((hole, length, data)),
            }
        }
        all
    }

    fn body(pieces: &[Content]) -> Vec<u8> {
        pieces.iter().cloned().flat_map(Content::into_record).flatten().collect()
    }

    #[test]
    fn what_no_file_can_be_is_refused() {
        let hole = |count: u64| (count | HOLE).to_le_bytes().to_vec();
        assert_eq!(read(&hole(0), 3), Err(ExtentsError::Empty));
        assert_eq!(read(&0u64.to_le_bytes(), 8), Err(ExtentsError::Empty));
        assert!(read(&hole(HOLE - 1), 8).is_ok());
        assert_eq!(read(&[hole(HOLE - 1), hole(1)].concat(), 8), Err(ExtentsError::TooLong));
        assert_eq!(read(&[hole(HOLE - 1), hole(HOLE - 1), hole(2)].concat(), 5), Err(ExtentsError::TooLong));
        for short in [&hole(5)[..7], &[5u64.to_le_bytes().as_slice(), b"four"].concat()] {
            assert_eq!(read(short, 4), Err(ExtentsError::Truncated));
        }
        assert_eq!(read(&[], 1), Ok((Vec::new(), 0)));
    }

    proptest! {
        #[test]
        fn pieces_come_back_however_they_are_cut(
            pieces in prop::collection::vec(prop_oneof![
                (0u64..1 << 40).prop_map(Content::Hole),
                prop::collection::vec(any::<u8>(), 0..300).prop_map(|data| Content::Data(data.into())),
            ], 0..8),
            cut in 1usize..50,
        ) {
            let (found, total) = read(&body(&pieces), cut).unwrap();
            prop_assert_eq!(total, pieces.iter().map(Content::length).sum::<u64>());
            prop_assert_eq!(joined(found), joined(pieces));
        }
    }
}
