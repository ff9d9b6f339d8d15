//! Reading files without reading their holes.

use std::fs::File;
use std::io::{self, Read};

use bytes::{Buf as _, Bytes};
use futures_util::Stream;
use microvm_types::extents::Content;
use rustix::fs::SeekFrom;
use rustix::io::Errno;

/// Bytes that are read at once.
const PART: usize = 128 * 1024;

/// Zeros that a hole reads as.
static ZEROS: [u8; PART] = [0; PART];

/// A file from its beginning to its end; holes are told by the file system and never read.
#[derive(Debug)]
pub(crate) struct ExtentReader {
    file: File,
    position: u64,
    /// End of the data, or of the hole, that begins at or before `position`.
    until: u64,
    hole: bool,
    /// Rest of the last part that the reader did not take.
    rest: Bytes,
}

impl ExtentReader {
    /// For a file that was just opened.
    pub(crate) const fn new(file: File) -> Self {
        Self { file, position: 0, until: 0, hole: false, rest: Bytes::new() }
    }

    /// The next bytes; `None` at the end.
    pub(crate) fn next(&mut self) -> io::Result<Option<Bytes>> {
        if self.position >= self.until {
            self.look()?;
        }
        if !self.hole {
            return self.data();
        }
        let room = usize::try_from(self.until - self.position).unwrap_or(usize::MAX).min(PART);
        self.position += room as u64;
        Ok(Some(Bytes::from_static(&ZEROS[..room])))
    }

    /// The next bytes, or the whole hole that begins here; `None` at the end.
    pub(crate) fn next_content(&mut self) -> io::Result<Option<Content>> {
        if self.position >= self.until {
            self.look()?;
        }
        if !self.hole {
            return Ok(self.data()?.map(Content::Data));
        }
        let hole = self.until - self.position;
        self.position = self.until;
        Ok(Some(Content::Hole(hole)))
    }

    fn data(&mut self) -> io::Result<Option<Bytes>> {
        let room = usize::try_from(self.until - self.position).unwrap_or(usize::MAX).min(PART);
        let mut buffer = Vec::with_capacity(room);
        // Read to the full part: single reads of a pipe give whatever is there, and each would be a frame of its own.
        io::copy(&mut (&self.file).take(room as u64), &mut buffer)?;
        self.position += buffer.len() as u64;
        Ok(Some(Bytes::from(buffer)).filter(|part| !part.is_empty()))
    }

    /// Finds out what begins here. Where the file system has nothing to say everything is data.
    fn look(&mut self) -> io::Result<()> {
        let here = self.position;
        let (hole, until) = match rustix::fs::seek(&self.file, SeekFrom::Data(here)) {
            Ok(data) if data > here => (true, data),
            // Without an answer the rest counts as data, which is true of any file.
            Ok(_) => (false, rustix::fs::seek(&self.file, SeekFrom::Hole(here)).unwrap_or(u64::MAX)),
            // No data from here on: a hole at the end, or the end.
            Err(Errno::NXIO) => match self.file.metadata()?.len() {
                end if end > here => (true, end),
                _ => (false, u64::MAX),
            },
            // A pipe, or a file system without holes.
            Err(_) => {
                (self.hole, self.until) = (false, u64::MAX);
                return Ok(());
            }
        };
        (self.hole, self.until) = (hole, until);
        // Asking for holes has moved the position from which data is read.
        if !hole {
            rustix::fs::seek(&self.file, SeekFrom::Start(here))?;
        }
        Ok(())
    }

    /// As a stream whose reads happen where they may wait.
    pub(crate) fn into_stream(self) -> impl Stream<Item = io::Result<Bytes>> + Send + 'static {
        futures_util::stream::try_unfold(self, |mut reader| async move {
            if reader.hole && reader.position < reader.until {
                // Nothing is read.
                return Ok(reader.next()?.map(|part| (part, reader)));
            }
            let joined = tokio::task::spawn_blocking(move || (reader.next(), reader)).await;
            let (part, reader) = joined.map_err(io::Error::other)?;
            Ok(part?.map(|part| (part, reader)))
        })
    }
}

/// The content of a file as a stream, its holes whole.
pub(crate) fn content(file: File) -> impl Stream<Item = io::Result<Content>> + Send + 'static {
    futures_util::stream::try_unfold(ExtentReader::new(file), |mut reader| async move {
        let joined = tokio::task::spawn_blocking(move || (reader.next_content(), reader)).await;
        let (piece, reader) = joined.map_err(io::Error::other)?;
        Ok(piece?.map(|piece| (piece, reader)))
    })
}

impl Read for ExtentReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.rest.is_empty() {
            self.rest = self.next()?.unwrap_or_default();
        }
        let length = buffer.len().min(self.rest.len());
        self.rest.copy_to_slice(&mut buffer[..length]);
        Ok(length)
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Seek as _, Write as _};
    use std::os::unix::fs::FileExt as _;

    use futures_util::TryStreamExt as _;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn holes_are_not_read() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(64 << 20).unwrap();
        file.write_all_at(b"middle", 32 << 20).unwrap();
        let mut reader = ExtentReader::new(file);
        let (mut length, mut read) = (0, 0);
        while let Some(part) = reader.next().unwrap() {
            length += part.len();
            let is_static = ZEROS.as_ptr_range().contains(&part.as_ptr());
            read += if is_static { 0 } else { part.len() };
        }
        assert_eq!(length, 64 << 20);
        assert!((6..=1 << 20).contains(&read), "{read} bytes were read");
    }

    #[test]
    fn what_has_no_size_is_read_to_its_end() {
        let (reader, mut writer) = io::pipe().unwrap();
        writer.write_all(b"through a pipe").unwrap();
        drop(writer);
        let mut all = String::new();
        ExtentReader::new(File::from(std::os::fd::OwnedFd::from(reader))).read_to_string(&mut all).unwrap();
        assert_eq!(all, "through a pipe");
        let mut status = String::new();
        ExtentReader::new(File::open("/proc/self/status").unwrap()).read_to_string(&mut status).unwrap();
        assert!(status.contains("Pid:"));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn bytes_are_those_of_the_file(
            parts in prop::collection::vec((0u64..600_000, prop::collection::vec(any::<u8>(), 0..9000)), 0..6),
            tail in 0u64..300_000,
        ) {
            let mut file = tempfile::tempfile().unwrap();
            let mut end = 0;
            for (gap, data) in &parts {
                file.write_all_at(data, end + gap).unwrap();
                end += gap + data.len() as u64;
            }
            file.set_len(end + tail).unwrap();
            let mut plain = Vec::new();
            file.read_to_end(&mut plain).unwrap();
            file.rewind().unwrap();
            let mut read = Vec::new();
            ExtentReader::new(file.try_clone().unwrap()).read_to_end(&mut read).unwrap();
            prop_assert!(read == plain, "as a reader");
            let copy = file.try_clone().unwrap();
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let streamed: Vec<Bytes> =
                runtime.block_on(ExtentReader::new(file).into_stream().try_collect()).unwrap();
            prop_assert!(streamed.concat() == plain, "as a stream");
            (&copy).rewind().unwrap();
            let pieces: Vec<Content> = runtime.block_on(content(copy).try_collect()).unwrap();
            let told = pieces.into_iter().flat_map(|piece| match piece {
                Content::Data(data) => data.to_vec(),
                Content::Hole(count) => vec![0; usize::try_from(count).unwrap()],
            });
            prop_assert!(told.collect::<Vec<u8>>() == plain, "as content");
        }
    }
}
