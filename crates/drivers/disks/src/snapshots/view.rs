//! A memory as it is seen through its layers: pages of a branch or of snapshots over a base file.

use std::fs::File;
use std::os::unix::fs::FileExt;

use bytes::Bytes;
use camino::{Utf8Path, Utf8PathBuf};
use microvm_durable::error::{bad_input, io_error};
use microvm_ports::StorageError;
use microvm_ports::branch::{MemoryPages, PAGE_SIZE, PageRange};

use super::page_file::{Content, PAGE, PageFile, Run};

/// Source of the content of an overlay.
enum Source {
    File(File, Utf8PathBuf),
    Memory(Bytes),
}

/// Pages that cover what is below them.
pub(crate) struct Overlay {
    /// Ascending, not overlapping.
    runs: Vec<Run>,
    source: Source,
}

/// Parts of a memory.
pub(crate) struct View {
    /// Pages of memory.
    pub(crate) pages: u64,
    /// `None`: zeros.
    pub(crate) base: Option<BaseFile>,
    /// Newest first.
    pub(crate) overlays: Vec<Overlay>,
}

/// An open memory base that is not all zero.
pub(crate) struct BaseFile {
    pub(crate) file: File,
    pub(crate) name: String,
    pub(crate) path: Utf8PathBuf,
}

/// Place of a run of pages of a view.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    Zero,
    Base,
    Overlay {
        index: usize,
        /// Of its first byte in the overlay.
        at: u64,
    },
}

impl Overlay {
    /// A file of packed pages.
    pub(crate) fn of_file(pages: PageFile) -> Self {
        Self { runs: pages.runs, source: Source::File(pages.file, pages.path) }
    }

    /// A file of the size of the memory whose holes are pages of what lies below.
    pub(crate) fn of_sparse(changes: BaseFile) -> Result<Self, StorageError> {
        let run = |range: PageRange| Run { range, content: Content::At(range.first * PAGE) };
        let runs = extents(&changes.file, &changes.path)?.into_iter().map(run).collect();
        Ok(Self { runs, source: Source::File(changes.file, changes.path) })
    }

    /// Pages of a branch; they are checked against a memory of `pages` pages.
    pub(crate) fn of_branch(changed: &MemoryPages, pages: u64) -> Result<Self, StorageError> {
        let wrong = |detail: &str| bad_input("the branch", detail);
        let (mut at, mut next, mut runs) = (0u64, 0, Vec::with_capacity(changed.ranges.len()));
        for range in &changed.ranges {
            let end = range.first.checked_add(range.count).filter(|end| *end <= pages);
            if range.count == 0 || range.first < next || end.is_none() {
                return Err(wrong("its pages are not in order, or not in its memory"));
            }
            next = range.end();
            runs.push(Run { range: *range, content: Content::At(at) });
            at += range.count * PAGE;
        }
        if at != changed.len() {
            return Err(wrong("its pages have another length than their content"));
        }
        Ok(Self { runs, source: Source::Memory(changed.data.clone()) })
    }

    fn read(&self, buffer: &mut [u8], at: u64) -> Result<(), StorageError> {
        match &self.source {
            Source::File(file, path) => file.read_exact_at(buffer, at).map_err(io_error("reading", path)),
            Source::Memory(data) => {
                let at = usize::try_from(at).unwrap_or(usize::MAX);
                let part = data.get(at..at.saturating_add(buffer.len()));
                buffer
                    .copy_from_slice(part.ok_or_else(|| bad_input("the branch", "its content ends early"))?);
                Ok(())
            }
        }
    }

    /// Bytes of content.
    pub(crate) fn content_bytes(&self) -> u64 {
        super::page_file::content_pages(&self.runs) * PAGE
    }
}

impl View {
    /// Calls `take` for each run of one place in `range`, in order.
    pub(crate) fn resolve(
        &self,
        range: PageRange,
        take: &mut impl FnMut(PageRange, Place) -> Result<(), StorageError>,
    ) -> Result<(), StorageError> {
        self.resolve_from(0, range, take)
    }

    fn resolve_from(
        &self,
        index: usize,
        range: PageRange,
        take: &mut impl FnMut(PageRange, Place) -> Result<(), StorageError>,
    ) -> Result<(), StorageError> {
        let Some(overlay) = self.overlays.get(index) else {
            return take(range, if self.base.is_some() { Place::Base } else { Place::Zero });
        };
        let mut next = range.first;
        let begin = overlay.runs.partition_point(|run| run.range.end() <= range.first);
        for run in overlay.runs[begin..].iter().take_while(|run| run.range.first < range.end()) {
            let first = run.range.first.max(range.first);
            let end = run.range.end().min(range.end());
            if next < first {
                self.resolve_from(index + 1, PageRange { first: next, count: first - next }, take)?;
            }
            let place = match run.content {
                Content::Zero => Place::Zero,
                Content::At(at) => Place::Overlay { index, at: at + (first - run.range.first) * PAGE },
            };
            take(PageRange { first, count: end - first }, place)?;
            next = end;
        }
        if next < range.end() {
            self.resolve_from(index + 1, PageRange { first: next, count: range.end() - next }, take)?;
        }
        Ok(())
    }

    /// Reads whole pages from page `first` on.
    pub(crate) fn read(&self, first: u64, buffer: &mut [u8]) -> Result<(), StorageError> {
        let count = (buffer.len() / PAGE_SIZE) as u64;
        self.resolve(PageRange { first, count }, &mut |range, place| {
            let begin = byte(range.first - first);
            self.read_place(range, place, &mut buffer[begin..begin + byte(range.count)])
        })
    }

    /// Reads what [`View::resolve`] found.
    pub(crate) fn read_place(
        &self,
        range: PageRange,
        place: Place,
        buffer: &mut [u8],
    ) -> Result<(), StorageError> {
        match (place, &self.base) {
            (Place::Overlay { index, at }, _) => self.overlays[index].read(buffer, at),
            (Place::Base, Some(base)) => {
                base.file.read_exact_at(buffer, range.first * PAGE).map_err(io_error("reading", &base.path))
            }
            (Place::Base | Place::Zero, _) => {
                buffer.fill(0);
                Ok(())
            }
        }
    }

    /// Pages that the overlays cover.
    pub(crate) fn covered(&self) -> Vec<PageRange> {
        let runs = self.overlays.iter().flat_map(|overlay| overlay.runs.iter());
        PageRange::union(runs.map(|run| run.range).collect())
    }

    /// About how many bytes writing all of it to a file of its own takes. Looking for the holes of a base would take
    /// milliseconds; what it takes on disk is known at once.
    pub(crate) fn size(&self) -> Result<u64, StorageError> {
        use std::os::unix::fs::MetadataExt;
        let own: u64 = self.overlays.iter().map(Overlay::content_bytes).sum();
        let Some(base) = &self.base else { return Ok(own) };
        let metadata = base.file.metadata().map_err(io_error("examining", &base.path))?;
        Ok((metadata.blocks() * 512).saturating_add(own).min(self.pages * PAGE))
    }

    /// Pages that may be other than zero.
    pub(crate) fn populated(&self) -> Result<Vec<PageRange>, StorageError> {
        let mut ranges = self.covered();
        if let Some(base) = &self.base {
            ranges.extend(extents(&base.file, &base.path)?);
        }
        Ok(PageRange::union(ranges))
    }
}

/// Bytes of so many pages, for indexing.
pub(crate) fn byte(pages: u64) -> usize {
    usize::try_from(pages.saturating_mul(PAGE)).unwrap_or(usize::MAX)
}

/// Pages of a file that are not holes.
pub(crate) fn extents(file: &File, path: &Utf8Path) -> Result<Vec<PageRange>, StorageError> {
    use rustix::fs::{SeekFrom, seek};
    let (mut at, mut ranges) = (0, Vec::new());
    loop {
        let data = match seek(file, SeekFrom::Data(at)) {
            Ok(data) => data,
            // Nothing but a hole follows.
            Err(rustix::io::Errno::NXIO) => return Ok(PageRange::union(ranges)),
            Err(error) => return Err(microvm_durable::error::errno("reading", path)(error)),
        };
        // Every file ends with a hole, so this one succeeds where the other did (lseek(2)).
        let end = seek(file, SeekFrom::Hole(data)).map_err(microvm_durable::error::errno("reading", path))?;
        let first = data / PAGE;
        ranges.push(PageRange { first, count: end.div_ceil(PAGE) - first });
        at = end;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PAGES: u64 = 24;

    fn index(page: u64) -> usize {
        usize::try_from(page).unwrap()
    }

    #[test]
    fn a_file_whose_seeks_fail_has_no_extents_that_are_believed() {
        // Of a pipe lseek(2) tells nothing (ESPIPE), as a disk that fails (EIO).
        let (reader, _writer) = std::io::pipe().unwrap();
        let reader = File::from(std::os::fd::OwnedFd::from(reader));
        assert!(extents(&reader, Utf8Path::new("pipe")).is_err());
    }

    fn branch(pages: &[(u64, u8)]) -> MemoryPages {
        let mut pages: Vec<(u64, u8)> = pages.to_vec();
        pages.sort_unstable();
        pages.dedup_by_key(|page| page.0);
        let ranges =
            PageRange::union(pages.iter().map(|page| PageRange { first: page.0, count: 1 }).collect());
        let data: Vec<u8> = pages.iter().flat_map(|page| vec![page.1; PAGE_SIZE]).collect();
        MemoryPages { ranges, data: data.into() }
    }

    fn pages() -> impl Strategy<Value = Vec<(u64, u8)>> {
        prop::collection::vec((0..PAGES, 1u8..), 0..20)
    }

    proptest! {
        #[test]
        fn a_view_shows_the_newest(layers in prop::collection::vec(pages(), 0..4), first in 0..PAGES) {
            let mut expected = vec![0; index(PAGES)];
            let mut overlays = Vec::new();
            for layer in layers {
                let layer = branch(&layer);
                for (range, content) in layer.iter() {
                    for page in 0..range.count {
                        expected[index(range.first + page)] = content[byte(page)];
                    }
                }
                overlays.insert(0, Overlay::of_branch(&layer, PAGES).unwrap());
            }
            let view = View { pages: PAGES, base: None, overlays };
            let mut buffer = vec![9; byte(PAGES - first)];
            view.read(first, &mut buffer).unwrap();
            for (page, value) in buffer.chunks(PAGE_SIZE).zip(&expected[index(first)..]) {
                prop_assert!(page.iter().all(|byte| byte == value));
            }
            let covered: u64 = view.covered().iter().map(|range| range.count).sum();
            prop_assert_eq!(covered, expected.iter().filter(|value| **value != 0).count() as u64);
        }
    }

    #[test]
    fn a_branch_that_does_not_fit_is_refused() {
        let sound = branch(&[(3, 1), (9, 2)]);
        assert!(Overlay::of_branch(&sound, 10).is_ok());
        assert!(Overlay::of_branch(&sound, 9).is_err());
        let mut reversed = sound.clone();
        reversed.ranges.reverse();
        assert!(Overlay::of_branch(&reversed, 10).is_err());
        let short = MemoryPages { data: sound.data.slice(1..), ..sound };
        assert!(Overlay::of_branch(&short, 10).is_err());
    }
}
