//! Log files that cannot fill a disk: two files, the older one given up when the newer one is full.
//!
//! ```text
//!  given up …│ path.old │ path      all bytes ever written have an offset; `path.start` holds the offset of the
//!            ↑ path.start           first one that is kept, so that a reader knows what it missed
//! ```

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt as _;

use camino::{Utf8Path, Utf8PathBuf};

/// Appends to `path`; at `cap` bytes it becomes `path.old`, which replaces the one before.
#[derive(Debug)]
pub struct CappedLog {
    path: Utf8PathBuf,
    file: File,
    written: u64,
    cap: u64,
    /// Offset of the first byte kept, where offsets are counted.
    start: Option<u64>,
    /// Bytes that could not be written since the last ones that could.
    lost: u64,
}

/// Some of a capped log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogPart {
    /// Offset of the first of `bytes`, counted over all bytes ever written.
    pub offset: u64,
    /// The bytes.
    pub bytes: Vec<u8>,
    /// Offset after the last byte of the log.
    pub end: u64,
}

impl CappedLog {
    /// Goes on with the log at `path`, which is made if it is missing; `cap` in bytes. A symbolic link is refused.
    ///
    /// # Errors
    /// Those of the system if the file cannot be opened.
    pub fn open(path: Utf8PathBuf, cap: u64) -> io::Result<Self> {
        let file = open(&path)?;
        let written = file.metadata()?.len();
        Ok(Self { path, file, written, cap, start: None, lost: 0 })
    }

    /// Opens an empty log whose offsets go on after what was there, which becomes `path.previous`.
    pub(crate) fn begin(path: Utf8PathBuf, cap: u64) -> io::Result<Self> {
        let length = |path: &Utf8Path| std::fs::symlink_metadata(path).map_or(0, |found| found.len());
        // A damaged note does not keep a VM from starting: its offsets begin anew.
        let noted = read_start(&path).ok().flatten();
        let start = noted.map_or(0, |found| found.0) + length(&old(&path)) + length(&path);
        let _ = std::fs::remove_file(old(&path));
        // Kept for people who ask why the VM ended before.
        let _ = std::fs::rename(&path, Utf8PathBuf::from(format!("{path}.previous")));
        write_start(&path, start, 0)?;
        Ok(Self { start: Some(start), ..Self::open(path, cap)? })
    }

    /// Adds `bytes`, which stay together in one file.
    ///
    /// # Errors
    /// Those of the system if they cannot be written.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.written >= self.cap {
            if let Some(start) = self.start {
                let gone = std::fs::symlink_metadata(old(&self.path)).map_or(0, |found| found.len());
                // Before the files change places: a reader that finds the note and the files at odds looks again.
                write_start(&self.path, start + gone, self.written)?;
                self.start = Some(start + gone);
            }
            std::fs::rename(&self.path, old(&self.path))?;
            self.file = open(&self.path)?;
            self.written = 0;
        }
        self.file.write_all(bytes)?;
        self.written += bytes.len() as u64;
        Ok(())
    }

    /// Adds `bytes`, or says later how many could not be written, as when the disk is full: whoever writes is never held up.
    pub(crate) fn write_or_tell(&mut self, bytes: &[u8]) {
        if self.lost > 0 {
            let told = format!("\n[{} bytes could not be written here]\n", self.lost);
            if self.write(told.as_bytes()).is_ok() {
                self.lost = 0;
            }
        }
        if self.lost > 0 || self.write(bytes).is_err() {
            self.lost += bytes.len() as u64;
        }
    }
}

fn start_file(path: &Utf8Path) -> Utf8PathBuf {
    Utf8PathBuf::from(format!("{path}.start"))
}

/// Notes the offset of the first byte kept, and the length that `path.old` has then. The text is always as long, so that
/// it can be written over where the disk is full.
fn write_start(path: &Utf8Path, start: u64, old_length: u64) -> io::Result<()> {
    let mut options = OpenOptions::new();
    options.create(true).truncate(false).write(true).mode(0o600).custom_flags(libc::O_NOFOLLOW);
    options.open(start_file(path))?.write_all(format!("{start:020} {old_length:020}\n").as_bytes())
}

/// Offset that [`write_start`] noted; `None` if nothing was, as in versions before.
fn read_start(path: &Utf8Path) -> io::Result<Option<(u64, u64)>> {
    let text = tail_of_file(&start_file(path), 64)?;
    if text.is_empty() {
        return Ok(None);
    }
    let numbers = std::str::from_utf8(&text).ok().and_then(|text| text.trim_end().split_once(' '));
    let numbers = numbers.and_then(|(start, old)| Some((start.parse().ok()?, old.parse().ok()?)));
    let unreadable = || io::Error::new(io::ErrorKind::InvalidData, format!("{path}.start is damaged"));
    numbers.map(Some).ok_or_else(unreadable)
}

/// Number of times that a reader looks again if the files changed places meanwhile.
const LOOKS: usize = 1_000;

/// Bytes of a capped log, at most `limit`: the newest, or with `from` those at that offset and after it (the oldest that
/// are kept if those are gone). Without a log the part is empty.
///
/// # Errors
/// If a file is there and cannot be read.
pub fn read(path: &Utf8Path, from: Option<u64>, limit: usize) -> io::Result<LogPart> {
    for _ in 0..LOOKS {
        let noted = read_start(path)?;
        let (older, newer) = (open_to_read(&old(path))?, open_to_read(path)?);
        let length = |file: &Option<File>| -> io::Result<u64> {
            file.as_ref().map_or(Ok(0), |file| Ok(file.metadata()?.len()))
        };
        let (old_length, new_length) = (length(&older)?, length(&newer)?);
        let (start, told) = noted.unwrap_or((0, old_length));
        // The files changed places while they were opened.
        if told != old_length || read_start(path)? != noted {
            std::thread::yield_now();
            continue;
        }
        let end = start + old_length + new_length;
        let newest = end.saturating_sub(limit as u64);
        let offset = from.unwrap_or(newest).clamp(start, end);
        let mut bytes = Vec::new();
        for (file, at, length) in [(older, start, old_length), (newer, start + old_length, new_length)] {
            let Some(mut file) = file else { continue };
            let skip = (offset + bytes.len() as u64).saturating_sub(at).min(length);
            let most = (limit - bytes.len()) as u64;
            file.seek(SeekFrom::Start(skip))?;
            // What came after the length was taken is for the next reader.
            file.take(most.min(length - skip)).read_to_end(&mut bytes)?;
        }
        return Ok(LogPart { offset, bytes, end });
    }
    Err(io::Error::new(io::ErrorKind::InvalidData, format!("{path}.start does not fit {path}.old")))
}

/// A link in its place would let whoever made it choose what is written to.
fn open(path: &Utf8Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).mode(0o600).custom_flags(libc::O_NOFOLLOW).open(path)
}

fn old(path: &Utf8Path) -> Utf8PathBuf {
    Utf8PathBuf::from(format!("{path}.old"))
}

/// The newest `limit` bytes of a capped log; empty if there is none.
///
/// # Errors
/// If a file is there and cannot be read.
pub fn tail(path: &Utf8Path, limit: usize) -> io::Result<Vec<u8>> {
    Ok(read(path, None, limit)?.bytes)
}

fn open_to_read(path: &Utf8Path) -> io::Result<Option<File>> {
    match OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn tail_of_file(path: &Utf8Path, limit: usize) -> io::Result<Vec<u8>> {
    let Some(mut file) = open_to_read(path)? else { return Ok(Vec::new()) };
    let limit = limit as u64;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(limit)))?;
    let mut bytes = Vec::new();
    file.take(limit).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_in_its_place_is_not_followed() {
        let folder = tempfile::tempdir().unwrap();
        let folder = Utf8Path::from_path(folder.path()).unwrap();
        let (target, log) = (folder.join("target"), folder.join("log"));
        std::fs::write(&target, "somebody's").unwrap();
        std::os::unix::fs::symlink(&target, &log).unwrap();
        assert!(CappedLog::open(log.clone(), 100).is_err());
        assert!(tail(&log, 100).is_err());
        assert_eq!(std::fs::read_to_string(&target).unwrap(), "somebody's");
    }

    #[test]
    fn every_byte_has_its_offset() {
        let folder = tempfile::tempdir().unwrap();
        let path = Utf8Path::from_path(folder.path()).unwrap().join("log");
        assert_eq!(read(&path, None, 10).unwrap(), LogPart { offset: 0, bytes: Vec::new(), end: 0 });
        let mut all = Vec::new();
        let mut seen = 0;
        for round in 0..3 {
            let mut log = CappedLog::begin(path.clone(), 100).unwrap();
            for number in 0..50 {
                let line = format!("{round}-{number:07}\n");
                log.write(line.as_bytes()).unwrap();
                all.extend_from_slice(line.as_bytes());
                // Whoever follows misses nothing.
                let part = read(&path, Some(seen), 1_000).unwrap();
                assert_eq!(
                    (part.offset, part.bytes.as_slice()),
                    (seen, &all[usize::try_from(seen).unwrap()..])
                );
                seen = part.end;
            }
            // Whoever begins at the beginning is told where what is kept begins.
            let kept = read(&path, Some(0), 1_000).unwrap();
            let offset = usize::try_from(kept.offset).unwrap();
            assert!(offset > 0 && kept.bytes == all[offset..], "{kept:?}");
            assert_eq!(kept.end, all.len() as u64);
            let some = read(&path, Some(kept.offset + 95), 20).unwrap();
            assert_eq!(some.bytes, all[offset + 95..offset + 115], "over the border of both files");
            assert_eq!(read(&path, None, 20).unwrap().bytes, all[all.len() - 20..]);
            assert_eq!(read(&path, Some(u64::MAX), 20).unwrap().bytes, b"");
        }
        std::fs::write(start_file(&path), "no number").unwrap();
        assert!(read(&path, None, 10).is_err());
        // As versions before left it.
        std::fs::remove_file(start_file(&path)).unwrap();
        assert_eq!(read(&path, None, 20).unwrap().bytes, all[all.len() - 20..]);
    }

    #[test]
    fn what_could_not_be_written_is_said() {
        let folder = tempfile::tempdir().unwrap();
        let path = Utf8Path::from_path(folder.path()).unwrap().join("log");
        let mut log = CappedLog::begin(path.clone(), 1_000).unwrap();
        log.write_or_tell(b"before");
        // Read-only, so that every write fails.
        let good = std::mem::replace(&mut log.file, File::open(&path).unwrap());
        log.write_or_tell(b"lost");
        log.write_or_tell(b"too");
        log.file = good;
        log.write_or_tell(b"after");
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(text, "before\n[7 bytes could not be written here]\nafter");
    }

    #[test]
    fn keeps_the_newest_and_no_more_than_twice_the_cap() {
        let directory = std::env::temp_dir().join(format!("capped-log-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let path = Utf8PathBuf::from_path_buf(directory.join("log")).unwrap();
        let mut log = CappedLog::open(path.clone(), 100).unwrap();
        for number in 0..1_000 {
            log.write(format!("{number:09}\n").as_bytes()).unwrap();
        }
        let all = tail(&path, 10_000).unwrap();
        assert!(all.len() <= 220, "{}", all.len());
        assert!(all.ends_with(b"000000999\n"));
        assert_eq!(tail(&path, 10).unwrap(), b"000000999\n");
        std::fs::remove_dir_all(directory).unwrap();
    }
}
