//! File contents on their way into an image: one temporary file, without the holes.

use std::fs::{File, OpenOptions};
use std::io::{BufWriter, Write};
use std::os::unix::fs::FileExt;

use camino::{Utf8Path, Utf8PathBuf};
use microvm_durable::error::io_error;
use microvm_durable::files::require_room;
use microvm_ports::StorageError;

use super::format::CHUNK;

/// Bytes written between two looks for room.
const LOOK_EVERY: u64 = 8 << 20;

#[allow(clippy::cast_possible_truncation, reason = "64 KiB fit everywhere")]
const CHUNK_LENGTH: usize = CHUNK as usize;

/// The file that holds the content of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Origin {
    /// The spool.
    Spool,
    /// The image below, which is read when the new one is written.
    Base {
        /// Place at which the content leaves its blocks, and the offset at which it goes on.
        tail: Option<(u64, u64)>,
    },
}

/// Place of the content of one file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct FileData {
    /// Length as the file shows it.
    pub(crate) size: u64,
    /// First byte in the file that holds it.
    pub(super) offset: u64,
    /// The file that holds it.
    pub(super) origin: Origin,
    /// For files with holes: runs of chunks, whether they hold data and how many they are. The spool has the chunks with
    /// data only. `None`: all of it is there.
    pub(super) runs: Option<Vec<(bool, u32)>>,
}

impl FileData {
    /// Bytes of memory that it holds besides itself.
    pub(super) fn memory(&self) -> usize {
        self.runs.as_ref().map_or(0, |runs| runs.capacity() * size_of::<(bool, u32)>())
    }

    /// A file without content.
    #[cfg(test)]
    pub(crate) const fn empty() -> Self {
        Self { size: 0, offset: 0, origin: Origin::Spool, runs: None }
    }

    /// Bytes that are really stored.
    pub(super) fn stored(&self) -> u64 {
        match &self.runs {
            None => self.size,
            Some(runs) => runs.iter().filter(|run| run.0).map(|run| u64::from(run.1) * CHUNK).sum(),
        }
    }
}

/// The temporary file. Contents are appended, read back at the end.
pub(crate) struct Spool {
    path: Utf8PathBuf,
    file: BufWriter<File>,
    length: u64,
    /// Length at the last look for room.
    looked_at: u64,
    /// The image that is built on, with its path.
    base: Option<(Utf8PathBuf, File)>,
    /// True if contents are of no use.
    forgets: bool,
}

impl Spool {
    /// Makes it at `path`.
    pub(crate) fn create(path: Utf8PathBuf) -> Result<Self, StorageError> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .open(&path)
            .map_err(io_error("creating", &path))?;
        Ok(Self {
            path,
            file: BufWriter::with_capacity(1 << 18, file),
            length: 0,
            looked_at: 0,
            base: None,
            forgets: false,
        })
    }

    /// Keeps no contents from now on: only what is known about files is wanted, which cannot be read.
    pub(crate) const fn forget_contents(&mut self) {
        self.forgets = true;
    }

    /// Begins a file. Nothing else can be written before it is finished.
    pub(crate) fn begin(&mut self) -> SpoolFile<'_> {
        SpoolFile {
            offset: self.length,
            spool: self,
            pending: Vec::new(),
            size: 0,
            runs: Vec::new(),
            holes: false,
        }
    }

    /// Makes contents of an image available that was read into the tree.
    pub(super) fn set_base(&mut self, path: Utf8PathBuf, file: File) {
        self.base = Some((path, file));
    }

    /// A file with the given content.
    pub(crate) fn store(&mut self, content: &[u8]) -> Result<FileData, StorageError> {
        let mut file = self.begin();
        file.write(content)?;
        file.finish()
    }

    /// The content of a file that was taken in; `None` if it has more than `most` bytes, or holes.
    pub(crate) fn content(&mut self, data: &FileData, most: u64) -> Result<Option<Vec<u8>>, StorageError> {
        if data.size > most || data.runs.is_some() {
            return Ok(None);
        }
        // It is read past the buffer, which may still hold it.
        self.file.flush().map_err(io_error("writing", &self.path))?;
        let mut content = vec![0; usize::try_from(data.size).unwrap_or(0)];
        read_content((&self.path, self.file.get_ref()), self.base.as_ref(), data, 0, &mut content)?;
        Ok(Some(content))
    }

    /// Ends writing and gives the file for reading.
    pub(crate) fn into_reader(self) -> Result<SpoolReader, StorageError> {
        let Self { path, file, base, .. } = self;
        let file = file.into_inner().map_err(|error| io_error("writing", &path)(error.into_error()))?;
        Ok(SpoolReader { path, file, base })
    }

    fn append(&mut self, bytes: &[u8]) -> Result<(), StorageError> {
        if self.forgets {
            self.length += bytes.len() as u64;
            return Ok(());
        }
        if self.length >= self.looked_at + LOOK_EVERY || self.looked_at == 0 {
            // An archive does not say how large it is: it is looked before each part whether that leaves VMs their room.
            let folder = self.path.parent().unwrap_or(&self.path);
            require_room(folder, LOOK_EVERY, "making the image")?;
            self.looked_at = self.length.max(1);
        }
        self.file.write_all(bytes).map_err(io_error("writing", &self.path))?;
        self.length += bytes.len() as u64;
        Ok(())
    }
}

/// One file that is being written.
pub(crate) struct SpoolFile<'a> {
    spool: &'a mut Spool,
    offset: u64,
    pending: Vec<u8>,
    size: u64,
    runs: Vec<(bool, u32)>,
    holes: bool,
}

impl SpoolFile<'_> {
    /// Appends bytes.
    pub(crate) fn write(&mut self, mut bytes: &[u8]) -> Result<(), StorageError> {
        self.size += bytes.len() as u64;
        while !bytes.is_empty() {
            let count = bytes.len().min(CHUNK_LENGTH - self.pending.len());
            self.pending.extend_from_slice(&bytes[..count]);
            bytes = &bytes[count..];
            if self.pending.len() == CHUNK_LENGTH {
                self.flush_chunk()?;
            }
        }
        Ok(())
    }

    /// Appends zeros, without writing them where they fill whole chunks.
    pub(crate) fn zeros(&mut self, mut count: u64) -> Result<(), StorageError> {
        while count > 0 {
            if self.pending.is_empty() && count >= CHUNK {
                let chunks = u32::try_from(count / CHUNK).unwrap_or(u32::MAX);
                self.run(false, chunks);
                let bytes = u64::from(chunks) * CHUNK;
                self.size += bytes;
                count -= bytes;
            } else {
                let part = count.min(CHUNK - self.pending.len() as u64);
                #[allow(clippy::cast_possible_truncation, reason = "at most one chunk")]
                self.write(&vec![0; part as usize])?;
                count -= part;
            }
        }
        Ok(())
    }

    /// Length so far.
    pub(crate) const fn size(&self) -> u64 {
        self.size
    }

    /// Ends the file.
    pub(crate) fn finish(mut self) -> Result<FileData, StorageError> {
        let rest = std::mem::take(&mut self.pending);
        if self.holes && !rest.is_empty() {
            // The last chunk is padded so that chunks stay chunks in the spool; the size says where the file ends.
            self.pending = rest;
            self.pending.resize(CHUNK_LENGTH, 0);
            self.flush_chunk()?;
        } else {
            self.spool.append(&rest)?;
        }
        let runs = self.holes.then_some(self.runs);
        Ok(FileData { size: self.size, offset: self.offset, origin: Origin::Spool, runs })
    }

    fn flush_chunk(&mut self) -> Result<(), StorageError> {
        let data = self.pending.iter().any(|byte| *byte != 0);
        if data {
            self.spool.append(&self.pending)?;
        }
        self.pending.clear();
        self.run(data, 1);
        Ok(())
    }

    fn run(&mut self, data: bool, count: u32) {
        self.holes |= !data;
        match self.runs.last_mut() {
            Some((last, length)) if *last == data && length.checked_add(count).is_some() => *length += count,
            _ => self.runs.push((data, count)),
        }
    }
}

/// Fills `buffer` with what a file stores from `at` on; holes are not counted.
fn read_content(
    spool: (&Utf8Path, &File),
    base: Option<&(Utf8PathBuf, File)>,
    data: &FileData,
    at: u64,
    buffer: &mut [u8],
) -> Result<(), StorageError> {
    let exact = |(path, file): (&Utf8Path, &File), offset, buffer: &mut [u8]| {
        file.read_exact_at(buffer, offset).map_err(io_error("reading", path))
    };
    let Origin::Base { tail } = data.origin else { return exact(spool, data.offset + at, buffer) };
    let (path, file) = base.ok_or_else(|| {
        microvm_durable::error::bad_input("the image", "its base was read and is not there any more")
    })?;
    let base = (&**path, file);
    let in_blocks = tail.map_or(u64::MAX, |(from, _)| from).saturating_sub(at);
    let split = usize::try_from(in_blocks).unwrap_or(usize::MAX).min(buffer.len());
    let (blocks, rest) = buffer.split_at_mut(split);
    exact(base, data.offset + at, blocks)?;
    match tail {
        Some((from, offset)) if !rest.is_empty() => exact(base, offset + (at + split as u64 - from), rest),
        _ => Ok(()),
    }
}

/// A finished spool.
pub(crate) struct SpoolReader {
    path: Utf8PathBuf,
    file: File,
    base: Option<(Utf8PathBuf, File)>,
}

impl SpoolReader {
    /// Fills `buffer` with what a file stores from `at` on; holes are not counted.
    pub(super) fn read(&self, data: &FileData, at: u64, buffer: &mut [u8]) -> Result<(), StorageError> {
        read_content((&self.path, &self.file), self.base.as_ref(), data, at, buffer)
    }

    /// Its path, for messages.
    pub(super) fn path(&self) -> &Utf8Path {
        &self.path
    }
}
