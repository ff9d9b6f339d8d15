//! Reads a file past the page cache, one portion ahead of whoever takes it, so that the disk works while the channel
//! carries what was read before.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::sync::mpsc;

use bytes::Bytes;
use rustix::fs::fstat;

/// Bytes read at once.
pub(super) const PORTION: usize = 1024 * 1024;
/// Alignment of memory, offsets and lengths: a page, which every disk is content with.
const ALIGNMENT: usize = 4096;

/// A file opened for direct reading; `None` where that cannot be, or where the page cache has it already.
pub(super) fn open(file: &File, path: &Path, from: u64) -> Option<File> {
    if cached(file, from) {
        return None;
    }
    let direct =
        File::options().read(true).custom_flags(libc::O_DIRECT | libc::O_NONBLOCK).open(path).ok()?;
    // Somebody may have put another file there since.
    let (one, other) = (fstat(file).ok()?, fstat(&direct).ok()?);
    ((one.st_dev, one.st_ino) == (other.st_dev, other.st_ino)).then_some(direct)
}

/// Reads `from..end` in portions and hands them over in order; `from` is aligned. Stops at the end of the file, at the
/// first error of reading, which is returned as the number of bytes that were handed over before it, and when `take`
/// fails.
pub(super) fn portions<E>(
    direct: &File,
    from: u64,
    end: u64,
    mut take: impl FnMut(Bytes) -> Result<(), E>,
) -> Result<u64, E> {
    // One portion waits, one is being read, one is being sent: more would only take memory.
    let (sender, receiver) = mpsc::sync_channel(1);
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let mut position = from;
            while position < end {
                // An error is met again, and told, by whoever reads the rest the ordinary way.
                let Ok(bytes) = portion(direct, position, end) else { return };
                let short = bytes.len() < PORTION;
                position += bytes.len() as u64;
                if bytes.is_empty() || sender.send(bytes).is_err() || short {
                    return;
                }
            }
        });
        let mut position = from;
        for bytes in receiver {
            let length = bytes.len() as u64;
            take(bytes)?;
            position += length;
        }
        Ok(position)
    })
}

fn portion(direct: &File, position: u64, end: u64) -> io::Result<Bytes> {
    let mut memory: Vec<u8> = Vec::with_capacity(PORTION + ALIGNMENT);
    let begin = memory.as_ptr().align_offset(ALIGNMENT).min(ALIGNMENT);
    memory.resize(begin, 0);
    let room = &mut memory.spare_capacity_mut()[..PORTION];
    let count = rustix::io::pread(direct, room, position)?.0.len();
    let wanted = usize::try_from(end - position).unwrap_or(usize::MAX).min(count);
    // SAFETY: the kernel has written `count` bytes behind the first `begin`, which were set before.
    // Needed: a safe read into aligned memory would have to fill it with zeros first.
    unsafe { memory.set_len(begin + wanted) };
    Ok(Bytes::from(memory).slice(begin..))
}

/// True if the page at this offset is in the page cache: then the file most likely is.
fn cached(file: &File, offset: u64) -> bool {
    use std::os::fd::AsRawFd as _;
    let Ok(offset) = libc::off_t::try_from(offset / ALIGNMENT as u64 * ALIGNMENT as u64) else {
        return false;
    };
    // SAFETY: a new mapping of one page at an address of the kernel's choice, never read from.
    // Needed: kernels before 6.5 tell what is cached for mappings only, and `mincore` has no safe wrapper.
    let page = unsafe {
        let (protection, flags) = (libc::PROT_READ, libc::MAP_SHARED);
        libc::mmap(std::ptr::null_mut(), ALIGNMENT, protection, flags, file.as_raw_fd(), offset)
    };
    if page == libc::MAP_FAILED {
        return false;
    }
    let mut resident = 0u8;
    // SAFETY: the page was mapped above, one byte of answer is asked for it, and nobody else knows the mapping.
    let asked = unsafe {
        let asked = libc::mincore(page, ALIGNMENT, &raw mut resident);
        libc::munmap(page, ALIGNMENT);
        asked
    };
    asked == 0 && resident & 1 == 1
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::fs;

    use super::*;

    #[test]
    fn portions_are_the_file() {
        let path = std::env::temp_dir().join(format!("microvm-ahead-{}", std::process::id()));
        let content: Vec<u8> = (0..3 * PORTION + 777).map(|at| u8::try_from(at % 251).unwrap()).collect();
        fs::write(&path, &content).unwrap();
        let file = File::open(&path).unwrap();
        for (from, end) in [(0, u64::MAX), (4096, 2 * PORTION as u64 + 5), (8192, 8193)] {
            let mut read = Vec::new();
            let stopped = portions(&file, from, end, |bytes| {
                read.extend_from_slice(&bytes);
                Ok::<_, Infallible>(())
            });
            let until = usize::try_from(end).unwrap().min(content.len());
            assert_eq!(stopped.unwrap(), until as u64);
            assert!(read == content[usize::try_from(from).unwrap()..until]);
        }
        assert_eq!(portions(&file, 0, u64::MAX, |_| Err(1)), Err(1));
        fs::remove_file(&path).unwrap();
    }

    #[test]
    fn what_was_just_written_is_cached() {
        let path = std::env::temp_dir().join(format!("microvm-cached-{}", std::process::id()));
        fs::write(&path, [1; 5000]).unwrap();
        assert!(cached(&File::open(&path).unwrap(), 4100));
        fs::remove_file(&path).unwrap();
    }
}
