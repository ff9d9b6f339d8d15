//! Writes the content of a file past the page cache.
//!
//! In an emulated guest the page cache costs more than the disk: some 5 ns per byte for a page at a time. So content is
//! gathered in large aligned portions and written directly; what is small, unaligned, or on a file system that cannot do
//! that takes the ordinary way.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};

use microvm_protocol::flow::WIDE_WINDOW;

/// Bytes written at once: half the widened window of a stream, so that data goes on coming while the disk works.
const PORTION: usize = WIDE_WINDOW as usize / 2;
/// Alignment of memory and offsets: a page, which every disk is content with.
const ALIGNMENT: usize = 4096;

/// Content on its way into a new file.
pub(super) struct DirectWriter<'a> {
    file: &'a File,
    /// Opened with the first whole portion; `Some(None)` where it cannot be.
    direct: Option<Option<File>>,
    memory: Vec<u8>,
    /// Index in `memory` at which the aligned portion begins.
    begin: usize,
    filled: usize,
    /// Offset in the file of the portion's first byte.
    position: u64,
    /// The file is to be longer than what was written.
    hole: bool,
}

impl<'a> DirectWriter<'a> {
    /// Writes to `file`.
    pub(super) fn new(file: &'a File) -> Self {
        Self { file, direct: None, memory: Vec::new(), begin: 0, filled: 0, position: 0, hole: false }
    }

    /// Appends bytes.
    pub(super) fn data(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        if self.memory.is_empty() {
            self.memory = vec![0; PORTION + ALIGNMENT];
            self.begin = self.memory.as_ptr().align_offset(ALIGNMENT).min(ALIGNMENT);
        }
        while !bytes.is_empty() {
            // After a hole a first portion may be shorter, so that the next ones are aligned again.
            let ahead = usize::try_from(self.position % ALIGNMENT as u64).unwrap_or(0);
            let room = PORTION - ahead - self.filled;
            let (now, later) = bytes.split_at(bytes.len().min(room));
            let at = self.begin + self.filled;
            self.memory[at..at + now.len()].copy_from_slice(now);
            self.filled += now.len();
            bytes = later;
            if self.filled == PORTION - ahead {
                self.flush()?;
            }
        }
        self.hole = false;
        Ok(())
    }

    /// Appends a run of zero bytes as a hole.
    pub(super) fn zeros(&mut self, count: u64) -> io::Result<()> {
        self.flush()?;
        let end = self.position.checked_add(count).filter(|end| i64::try_from(*end).is_ok());
        self.position = end.ok_or_else(|| io::Error::from_raw_os_error(libc::EFBIG))?;
        self.hole = true;
        Ok(())
    }

    /// Writes what is left; returns the size of the file.
    pub(super) fn finish(mut self) -> io::Result<u64> {
        self.flush()?;
        if self.hole {
            self.file.set_len(self.position)?;
        }
        Ok(self.position)
    }

    fn flush(&mut self) -> io::Result<()> {
        let portion = &self.memory[self.begin..self.begin + self.filled];
        let mut done = 0;
        if self.filled == PORTION && self.position.is_multiple_of(ALIGNMENT as u64) {
            // The same file, whatever has its name by now: a program of the guest may have put a link there.
            let same = format!("/proc/self/fd/{}", self.file.as_raw_fd());
            let open = || File::options().write(true).custom_flags(libc::O_DIRECT).open(same).ok();
            if let Some(direct) = self.direct.get_or_insert_with(open) {
                match direct.write_at(portion, self.position) {
                    // A part that is no whole number of pages would leave the rest unaligned.
                    Ok(count) => done = count / ALIGNMENT * ALIGNMENT,
                    // This file system wants another alignment, or no direct writes: the ordinary way is right for
                    // all.
                    Err(error) if error.raw_os_error() == Some(libc::EINVAL) => self.direct = Some(None),
                    Err(error) => return Err(error),
                }
            }
        }
        if done < portion.len() {
            self.file.write_all_at(&portion[done..], self.position + done as u64)?;
        }
        self.position += self.filled as u64;
        self.filled = 0;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn what_is_written_is_what_is_read() {
        let path = std::env::temp_dir().join(format!("microvm-direct-{}", std::process::id()));
        let file = File::create(&path).unwrap();
        let content: Vec<u8> = (0..5 * PORTION + 777).map(|at| u8::try_from(at % 251).unwrap()).collect();
        let mut writer = DirectWriter::new(&file);
        let mut expected = Vec::new();
        for (number, part) in content.chunks(300_001).enumerate() {
            writer.data(part).unwrap();
            expected.extend_from_slice(part);
            if number % 5 == 4 {
                writer.zeros(10_000 + number as u64).unwrap();
                expected.resize(expected.len() + 10_000 + number, 0);
            }
        }
        writer.zeros(5).unwrap();
        expected.resize(expected.len() + 5, 0);
        assert_eq!(writer.finish().unwrap(), expected.len() as u64);
        assert!(fs::read(&path).unwrap() == expected);
        fs::remove_file(&path).unwrap();
    }

    #[test]
    fn a_link_that_took_the_place_of_the_file_is_not_written_through() {
        let folder = std::env::temp_dir().join(format!("microvm-direct-link-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let (path, moved, victim) = (folder.join("new"), folder.join("moved"), folder.join("victim"));
        fs::write(&victim, "secret").unwrap();
        let file = File::create(&path).unwrap();
        fs::rename(&path, &moved).unwrap();
        std::os::unix::fs::symlink(&victim, &path).unwrap();
        let mut writer = DirectWriter::new(&file);
        writer.data(&vec![7; 2 * PORTION]).unwrap();
        assert_eq!(writer.finish().unwrap(), 2 * PORTION as u64);
        assert_eq!(fs::read(&victim).unwrap(), b"secret");
        assert!(fs::read(&moved).unwrap() == vec![7; 2 * PORTION]);
        fs::remove_dir_all(&folder).unwrap();
    }
}
