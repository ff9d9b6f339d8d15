//! Log files that cannot fill a disk: two files, the older one given up when the newer one is full.

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
}

impl CappedLog {
    /// Goes on with the log at `path`, which is made if it is missing; `cap` in bytes. A symbolic link is refused.
    ///
    /// # Errors
    /// What the system says if the file cannot be opened.
    pub fn open(path: Utf8PathBuf, cap: u64) -> io::Result<Self> {
        let file = open(&path)?;
        let written = file.metadata()?.len();
        Ok(Self { path, file, written, cap })
    }

    /// Opens an empty log; what was there becomes `path.previous`.
    pub(crate) fn begin(path: Utf8PathBuf, cap: u64) -> io::Result<Self> {
        let _ = std::fs::remove_file(old(&path));
        let _ = std::fs::rename(&path, Utf8PathBuf::from(format!("{path}.previous")));
        Self::open(path, cap)
    }

    /// Adds `bytes`, which stay together in one file.
    ///
    /// # Errors
    /// What the system says if they cannot be written.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.written >= self.cap {
            std::fs::rename(&self.path, old(&self.path))?;
            self.file = open(&self.path)?;
            self.written = 0;
        }
        self.file.write_all(bytes)?;
        self.written += bytes.len() as u64;
        Ok(())
    }
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
    let newer = tail_of_file(path, limit)?;
    let mut bytes =
        if newer.len() < limit { tail_of_file(&old(path), limit - newer.len())? } else { Vec::new() };
    bytes.extend_from_slice(&newer);
    Ok(bytes)
}

fn tail_of_file(path: &Utf8Path, limit: usize) -> io::Result<Vec<u8>> {
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path);
    let mut file = match file {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
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
