//! A reader that gives no more than it may between two entries of an archive.

use std::cell::Cell;
use std::io::{self, Read};

/// Most bytes that an archive may say about one entry before the entry itself: names, attributes and maps of sparse files are
/// taken whole into memory by the archive reader, those of one entry at a time, and memory that runs out takes the guest's
/// first process with it. A map of 100,000 parts takes 2.4 MB as old GNU archives have it, 6 MB as version 0.0 of pax has it.
pub(super) const MOST_BEFORE_AN_ENTRY: usize = 8 << 20;

/// Passes reads on until the budget is used up; `None`: without limit, as for content, which goes to disk as it comes.
pub(super) struct Limited<'a, R> {
    pub(super) inner: R,
    pub(super) budget: &'a Cell<Option<usize>>,
}

impl<R: Read> Read for Limited<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let Some(left) = self.budget.get() else { return self.inner.read(buffer) };
        let wanted = buffer.len().min(left);
        if wanted == 0 && !buffer.is_empty() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "an entry's name, attributes or map of a sparse file take more than 8 MiB",
            ));
        }
        let count = self.inner.read(&mut buffer[..wanted])?;
        self.budget.set(Some(left - count));
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(long: usize) -> io::Result<Vec<usize>> {
        let mut builder = tar::Builder::new(Vec::new());
        for length in [3, long, 3] {
            let mut header = tar::Header::new_gnu();
            header.set_size(4);
            builder.append_data(&mut header, "x".repeat(length), &b"data"[..])?;
        }
        let bytes = builder.into_inner()?;
        let budget = Cell::new(Some(MOST_BEFORE_AN_ENTRY));
        let mut archive = tar::Archive::new(Limited { inner: &bytes[..], budget: &budget });
        let mut entries = archive.entries()?;
        let mut lengths = Vec::new();
        loop {
            budget.set(Some(MOST_BEFORE_AN_ENTRY));
            let Some(entry) = entries.next() else { return Ok(lengths) };
            lengths.push(entry?.path_bytes().len());
        }
    }

    #[test]
    fn long_names_pass_and_endless_ones_do_not() {
        assert_eq!(names(5000).unwrap(), [3, 5000, 3]);
        assert!(names(MOST_BEFORE_AN_ENTRY + 1).is_err());
    }
}
