//! Copying pages out of and into the QEMU process.

use std::io::{self, IoSlice, IoSliceMut};

use bytes::Bytes;
use memmap2::{Advice, MmapMut, MmapOptions};
use microvm_ports::branch::{MemoryPages, PAGE_SIZE, PageRange};
use nix::sys::uio::{RemoteIoVec, process_vm_readv, process_vm_writev};
use nix::unistd::Pid;

use super::mapping::Mapping;

/// Most pieces in one call (UIO_MAXIOV of linux/uio.h).
const PIECES: usize = 1_024;
/// Most bytes in one call; the kernel's own limit is 2 GiB less one page (MAX_RW_COUNT of linux/fs.h).
const CALL_BYTES: usize = 256 << 20;
/// More changed memory than this is copied by two threads: starting one takes some 50 µs, as long as copying 0.5 MiB.
const TWO_THREADS: usize = 4 << 20;

/// Memory for pages, touched before it is needed so that copying into it is nothing but copying.
pub(crate) struct PageBuffer(pub(super) MmapMut);

impl PageBuffer {
    /// Room for `bytes`, given back to the host as soon as the last user of the content is gone.
    pub(crate) fn with_capacity(bytes: usize) -> io::Result<Self> {
        // The kernel refuses a mapping of nothing.
        let map = MmapOptions::new().len(bytes.max(PAGE_SIZE)).map_anon()?;
        // Huge pages make touching it several times as fast; without them it is only slower.
        let _ = map.advise(Advice::HugePage);
        map.advise(Advice::PopulateWrite)?;
        Ok(Self(map))
    }

    pub(crate) fn capacity(&self) -> usize {
        self.0.len()
    }

    /// Copies `ranges` of the guest's memory into the buffer, which must be large enough. They must ascend and not
    /// overlap: where each page lies in the buffer follows from that.
    pub(crate) fn fill(mut self, mapping: &Mapping, ranges: Vec<PageRange>) -> io::Result<Copied> {
        if ranges.windows(2).any(|pair| pair[1].first < pair[0].end()) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "changed pages are not in order"));
        }
        let bytes = total(&ranges);
        if bytes > self.0.len() {
            return Err(io::Error::new(
                io::ErrorKind::OutOfMemory,
                "more pages have changed than there is room for",
            ));
        }
        let content = &mut self.0[..bytes];
        if bytes < TWO_THREADS {
            read(mapping, &ranges, content)?;
        } else {
            let (first, second) = halve(&ranges);
            let (ours, theirs) = content.split_at_mut(total(&first));
            std::thread::scope(|scope| {
                // One half is copied by this thread: only one more must be started.
                let other = scope.spawn(|| read(mapping, &second, theirs));
                let own = read(mapping, &first, ours);
                own.and(other.join().unwrap_or_else(|_| Err(io::Error::other("the copying thread panicked"))))
            })?;
        }
        Ok(Copied { ranges, buffer: self })
    }
}

/// Pages in a buffer, one after the other.
pub(crate) struct Copied {
    pub(super) ranges: Vec<PageRange>,
    pub(super) buffer: PageBuffer,
}

impl From<Copied> for MemoryPages {
    fn from(copied: Copied) -> Self {
        let bytes = total(&copied.ranges);
        Self { ranges: copied.ranges, data: Bytes::from_owner(copied.buffer.0).slice(..bytes) }
    }
}

/// Bytes of all pages of `ranges`.
pub(crate) fn total(ranges: &[PageRange]) -> usize {
    let pages: u64 = ranges.iter().map(|range| range.count).sum();
    usize::try_from(pages).unwrap_or(usize::MAX).saturating_mul(PAGE_SIZE)
}

/// Two lists with half the pages each.
fn halve(ranges: &[PageRange]) -> (Vec<PageRange>, Vec<PageRange>) {
    let half = ranges.iter().map(|range| range.count).sum::<u64>() / 2;
    let (mut first, mut second, mut pages) = (Vec::new(), Vec::new(), 0);
    for range in ranges {
        let here = half.saturating_sub(pages).min(range.count);
        if here > 0 {
            first.push(PageRange { first: range.first, count: here });
        }
        if here < range.count {
            second.push(PageRange { first: range.first + here, count: range.count - here });
        }
        pages += range.count;
    }
    (first, second)
}

/// Pieces of the process's memory for one call each: at most [`PIECES`] of them and [`CALL_BYTES`] together.
fn batches(mapping: &Mapping, ranges: &[PageRange]) -> io::Result<Vec<(Vec<RemoteIoVec>, usize)>> {
    let mut batches = vec![(Vec::new(), 0)];
    for range in ranges {
        let end = range.end().checked_mul(PAGE_SIZE as u64).filter(|end| *end <= mapping.length);
        let end = end.ok_or_else(|| {
            io::Error::new(io::ErrorKind::InvalidInput, "a page lies outside the guest's memory")
        })?;
        let convert = |value: u64| usize::try_from(value).map_err(io::Error::other);
        let mut base = convert(mapping.start + range.first * PAGE_SIZE as u64)?;
        let end = convert(mapping.start + end)?;
        while base < end {
            if batches.last().is_none_or(|(pieces, bytes)| pieces.len() == PIECES || *bytes == CALL_BYTES) {
                batches.push((Vec::new(), 0));
            }
            if let Some((pieces, bytes)) = batches.last_mut() {
                let len = (end - base).min(CALL_BYTES - *bytes);
                pieces.push(RemoteIoVec { base, len });
                *bytes += len;
                base += len;
            }
        }
    }
    Ok(batches)
}

fn read(mapping: &Mapping, ranges: &[PageRange], mut content: &mut [u8]) -> io::Result<()> {
    let pid = Pid::from_raw(mapping.process.pid);
    for (mut pieces, length) in batches(mapping, ranges)? {
        let (mut here, rest) = content.split_at_mut(length);
        while !here.is_empty() {
            let count = process_vm_readv(pid, &mut [IoSliceMut::new(here)], &pieces)?;
            advance(&mut pieces, count)?;
            here = &mut here[count..];
        }
        content = rest;
    }
    Ok(())
}

/// Writes pages into a guest's memory; its processors must be paused.
pub(crate) fn inject(mapping: &Mapping, pages: &MemoryPages) -> io::Result<()> {
    let pid = Pid::from_raw(mapping.process.pid);
    let mut content: &[u8] = &pages.data;
    for (mut pieces, length) in batches(mapping, &pages.ranges)? {
        let (mut here, rest) = content.split_at_checked(length).ok_or(io::ErrorKind::UnexpectedEof)?;
        while !here.is_empty() {
            let count = process_vm_writev(pid, &[IoSlice::new(here)], &pieces)?;
            advance(&mut pieces, count)?;
            here = &here[count..];
        }
        content = rest;
    }
    if content.is_empty() {
        Ok(())
    } else {
        Err(io::Error::new(io::ErrorKind::InvalidInput, "there is more content than pages for it"))
    }
}

/// Drops the first `count` bytes of `pieces`: a call may do less than it was asked to, at any byte.
///
/// # Errors
/// If nothing was done, or more than was asked for.
fn advance(pieces: &mut Vec<RemoteIoVec>, mut count: usize) -> io::Result<()> {
    if count == 0 {
        return Err(io::Error::new(
            io::ErrorKind::UnexpectedEof,
            "no byte of the guest's memory could be copied",
        ));
    }
    let done = pieces
        .iter()
        .take_while(|piece| {
            count >= piece.len && {
                count -= piece.len;
                true
            }
        })
        .count();
    pieces.drain(..done);
    match pieces.first_mut() {
        Some(piece) => {
            piece.base += count;
            piece.len -= count;
            Ok(())
        }
        None if count == 0 => Ok(()),
        None => Err(io::Error::other("more of the guest's memory was copied than was asked for")),
    }
}

#[cfg(test)]
mod tests {
    use super::super::mapping::this_process;
    use super::*;

    fn mapping(memory: &[u8]) -> Mapping {
        let process = this_process();
        Mapping { process, start: memory.as_ptr() as u64, length: memory.len() as u64 }
    }

    fn ranges(list: &[(u64, u64)]) -> Vec<PageRange> {
        list.iter().map(|&(first, count)| PageRange { first, count }).collect()
    }

    #[test]
    fn pages_go_out_and_in_again() {
        let pages = 2_000; // more than one thread takes, in more pieces than one call takes
        let mut source = MmapMut::map_anon(pages * PAGE_SIZE).unwrap();
        for (index, byte) in source.iter_mut().enumerate() {
            *byte = u8::try_from((index / PAGE_SIZE * 7 + index) % 251).unwrap();
        }
        let taken: Vec<PageRange> = ranges(&(0..1_000).map(|page| (page * 2, 1)).collect::<Vec<_>>());
        let buffer = PageBuffer::with_capacity(total(&taken)).unwrap();
        let copied = MemoryPages::from(buffer.fill(&mapping(&source), taken).unwrap());
        for (range, content) in copied.iter() {
            let at = usize::try_from(range.first).unwrap() * PAGE_SIZE;
            assert_eq!(content, &source[at..at + content.len()]);
        }
        let target = MmapMut::map_anon(pages * PAGE_SIZE).unwrap();
        inject(&mapping(&target), &copied).unwrap();
        for page in 0..pages {
            let at = page * PAGE_SIZE..(page + 1) * PAGE_SIZE;
            if page % 2 == 0 {
                assert_eq!(target[at.clone()], source[at]);
            } else {
                assert!(target[at].iter().all(|byte| *byte == 0));
            }
        }
    }

    #[test]
    fn what_lies_outside_is_refused() {
        let memory = MmapMut::map_anon(4 * PAGE_SIZE).unwrap();
        let buffer = PageBuffer::with_capacity(2 * PAGE_SIZE).unwrap();
        assert!(buffer.fill(&mapping(&memory), ranges(&[(3, 2)])).is_err());
        let pages = MemoryPages { ranges: ranges(&[(9, 1)]), data: Bytes::from(vec![0; PAGE_SIZE]) };
        assert!(inject(&mapping(&memory), &pages).is_err());
    }

    #[test]
    fn ranges_out_of_order_are_refused() {
        let memory = MmapMut::map_anon(8 * PAGE_SIZE).unwrap();
        for list in [[(4, 1), (2, 1)], [(1, 3), (3, 1)]] {
            let buffer = PageBuffer::with_capacity(8 * PAGE_SIZE).unwrap();
            assert!(buffer.fill(&mapping(&memory), ranges(&list)).is_err());
        }
    }

    #[test]
    fn a_call_that_does_less_goes_on_where_it_ended() {
        let piece = |base, len| RemoteIoVec { base, len };
        let mut pieces = vec![piece(100, 10), piece(200, 20), piece(300, 30)];
        advance(&mut pieces, 10).unwrap();
        assert_eq!(pieces, [piece(200, 20), piece(300, 30)]);
        advance(&mut pieces, 25).unwrap();
        assert_eq!(pieces, [piece(305, 25)]);
        assert!(advance(&mut pieces, 0).is_err());
        assert!(advance(&mut pieces.clone(), 26).is_err());
        advance(&mut pieces, 25).unwrap();
        assert!(pieces.is_empty());
    }

    #[test]
    fn halves_are_halves() {
        let (first, second) = halve(&ranges(&[(0, 3), (10, 5)]));
        assert_eq!(first, ranges(&[(0, 3), (10, 1)]));
        assert_eq!(second, ranges(&[(11, 4)]));
    }
}
