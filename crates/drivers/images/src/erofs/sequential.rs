//! Reads a file of an image from its beginning to its end, holes as zeros.

use microvm_archive::sparse_map::SparseMap;
use microvm_ports::StorageError;

use super::format::CHUNK;
use super::spool::{FileData, SpoolReader};

/// A place in a file.
pub(crate) struct Sequential<'a> {
    contents: &'a SpoolReader,
    data: &'a FileData,
    /// Offset in the file.
    position: u64,
    /// Offset among what is stored of it.
    stored: u64,
    /// The run that the position is in, and its offset there, in bytes.
    run: usize,
    inside: u64,
}

impl<'a> Sequential<'a> {
    pub(crate) const fn new(contents: &'a SpoolReader, data: &'a FileData) -> Self {
        Self { contents, data, position: 0, stored: 0, run: 0, inside: 0 }
    }

    /// Goes forward to an offset, which lies in the file.
    pub(crate) fn skip_to(&mut self, offset: u64) {
        while self.position < offset {
            let (is_data, length) = self.stretch(offset - self.position);
            self.go(is_data, length);
        }
    }

    /// Fills `buffer` with what comes next; the file has as much.
    pub(crate) fn read(&mut self, mut buffer: &mut [u8]) -> Result<(), StorageError> {
        while !buffer.is_empty() {
            let (is_data, length) = self.stretch(buffer.len() as u64);
            let (part, rest) = buffer.split_at_mut(usize::try_from(length).unwrap_or(usize::MAX));
            if is_data {
                self.contents.read(self.data, self.stored, part)?;
            } else {
                part.fill(0);
            }
            buffer = rest;
            self.go(is_data, length);
        }
        Ok(())
    }

    /// Whether data comes next, and how many bytes alike, at most `most` and at least one.
    fn stretch(&self, most: u64) -> (bool, u64) {
        let Some(runs) = &self.data.runs else { return (true, most) };
        match runs.get(self.run) {
            Some((is_data, count)) => (*is_data, most.min(u64::from(*count) * CHUNK - self.inside)),
            // Runs cover the whole file; behind them there would be zeros.
            None => (false, most),
        }
    }

    fn go(&mut self, is_data: bool, length: u64) {
        self.position += length;
        if is_data {
            self.stored += length;
        }
        let Some((_, count)) = self.data.runs.as_ref().and_then(|runs| runs.get(self.run)) else { return };
        self.inside += length;
        if self.inside == u64::from(*count) * CHUNK {
            (self.run, self.inside) = (self.run + 1, 0);
        }
    }
}

impl FileData {
    /// Where the file has data; `None` if it is best told as a file without holes.
    pub(crate) fn map(&self) -> Option<SparseMap> {
        let mut stretches: Vec<(u64, u64)> = Vec::new();
        let mut at = 0;
        for (is_data, count) in self.runs.as_ref()? {
            let end = at + u64::from(*count) * CHUNK;
            match stretches.last_mut() {
                Some(last) if *is_data && last.1 == at => last.1 = end,
                _ if *is_data => stretches.push((at, end)),
                _ => {}
            }
            at = end;
        }
        // The first stretch that ends behind an offset; the last one may end behind the file, where its chunk does.
        let behind = |offset: u64| stretches.get(stretches.partition_point(|stretch| stretch.1 <= offset));
        let data = |offset: u64| behind(offset).map(|stretch| stretch.0.max(offset));
        let hole = |offset: u64| behind(offset).map(|stretch| stretch.1);
        let found = |place| Ok::<_, std::convert::Infallible>(place);
        SparseMap::find(self.size, self.stored() / 512, |from| found(data(from)), |from| found(hole(from)))
    }
}
