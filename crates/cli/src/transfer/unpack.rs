//! Unpacking an archive that a guest made: everything in it may be a lie.
//!
//! Every name is walked from the target's descriptor, one component at a time, never through a symbolic link, so that
//! nothing can be written outside. Links that would lead outside are left out; so are devices, FIFOs and sockets; set-id
//! bits are dropped; files take their place complete or not at all.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Mode, OFlags, Timespec, Timestamps, UTIME_OMIT};
use tar::{Archive, Entry, EntryType};

use crate::autostart::say;
use crate::error::{CliError, printable};
use crate::transfer::sparse::SparseWriter;
use crate::transfer::temporary;

/// Deepest nesting of directories.
const DEPTH_MAX: usize = 256;

/// Most entries of one archive.
const ENTRIES_MAX: u64 = 10_000_000;

/// How many of the left-out entries are named; the rest is counted.
const NAMED_MAX: u64 = 20;

const FOLDER: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Unpacks below `target`, which must exist. Names in the archive begin with `prefix`, which is taken off; an archive
/// whose only entry is the prefix itself as a file is refused.
pub(crate) fn unpack(data: impl Read, target: &Path, prefix: &[u8]) -> Result<(), CliError> {
    let open = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::openat(CWD, target, open, Mode::empty())
        .map_err(|error| CliError::file("opening", target, &error.into()))?;
    let mut unpacker = Unpacker { root, prefix, left_out: 0, folders: Vec::new() };
    let mut archive = Archive::new(data);
    let broken = |error: &io::Error| {
        CliError::invalid("archive_invalid", format!("the archive from the guest cannot be read: {error}"))
    };
    for (count, entry) in (0u64..).zip(archive.entries().map_err(|error| broken(&error))?) {
        if count >= ENTRIES_MAX {
            return Err(CliError::invalid(
                "archive_invalid",
                format!("the archive from the guest has more than {ENTRIES_MAX} entries: copy less at once"),
            ));
        }
        unpacker.entry(entry.map_err(|error| broken(&error))?)?;
    }
    unpacker.finish();
    Ok(())
}

struct Unpacker<'a> {
    root: OwnedFd,
    prefix: &'a [u8],
    left_out: u64,
    /// Permissions of directories are set last: one that may not be written could not be filled.
    folders: Vec<(Vec<Vec<u8>>, u32)>,
}

impl Unpacker<'_> {
    fn entry(&mut self, mut entry: Entry<'_, impl Read>) -> Result<(), CliError> {
        let name = entry.path_bytes().into_owned();
        let Some(components) = components(&name) else {
            self.leave_out(&name, "its name leads outside");
            return Ok(());
        };
        let inner = match components.split_first() {
            Some((first, inner)) if *first == self.prefix => inner,
            // The root of an archive of `/` itself, or of an empty name.
            None => return Ok(()),
            Some(_) if self.prefix.is_empty() => &components[..],
            Some(_) => {
                self.leave_out(&name, "it is not what was asked for");
                return Ok(());
            }
        };
        let Some((last, folders)) = inner.split_last() else { return Ok(()) };
        let done = match entry.header().entry_type() {
            EntryType::Directory => self.folder(inner, entry.header().mode().unwrap_or(0o755)),
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                self.file(folders, last, &mut entry)?
            }
            EntryType::Symlink => {
                let link = entry.link_name_bytes().unwrap_or_default().into_owned();
                if stays_inside(folders.len(), &link) {
                    self.symlink(folders, last, &link)
                } else {
                    self.leave_out(&name, "it is a link that leads outside");
                    Ok(())
                }
            }
            EntryType::Link => {
                let target = entry.link_name_bytes().unwrap_or_default().into_owned();
                match self.inside(&target) {
                    Some(target) => self.hard_link(folders, last, &target),
                    None => {
                        self.leave_out(&name, "it is a link that leads outside");
                        Ok(())
                    }
                }
            }
            EntryType::XGlobalHeader => Ok(()),
            _ => {
                self.leave_out(&name, "it is a device, FIFO or socket");
                Ok(())
            }
        };
        done.map_err(|error| CliError::file("unpacking", OsStr::from_bytes(&name), &error))
    }

    /// Components below the target, of a name in the archive.
    fn inside(&self, name: &[u8]) -> Option<Vec<Vec<u8>>> {
        let components = components(name)?;
        if self.prefix.is_empty() {
            return Some(components);
        }
        match components.split_first() {
            Some((first, inner)) if *first == self.prefix && !inner.is_empty() => Some(inner.to_vec()),
            _ => None,
        }
    }

    /// Opens a directory below the target, making what is missing. Fails where a link or a file is in the way.
    fn open(&self, folders: &[Vec<u8>]) -> io::Result<OwnedFd> {
        let mut at = self.root.try_clone()?;
        for name in folders {
            match rustix::fs::mkdirat(&at, name.as_slice(), Mode::RWXU) {
                Ok(()) | Err(rustix::io::Errno::EXIST) => {}
                Err(error) => return Err(error.into()),
            }
            at = rustix::fs::openat(&at, name.as_slice(), FOLDER, Mode::empty())?;
        }
        Ok(at)
    }

    fn folder(&mut self, components: &[Vec<u8>], mode: u32) -> io::Result<()> {
        self.open(components)?;
        self.folders.push((components.to_vec(), mode & 0o777));
        Ok(())
    }

    /// The outer error ends the work, the inner one is told with the entry's name.
    fn file(
        &self,
        folders: &[Vec<u8>],
        name: &[u8],
        entry: &mut Entry<'_, impl Read>,
    ) -> Result<io::Result<()>, CliError> {
        let temporary = temporary::name()?;
        let folder = match self.open(folders) {
            Ok(folder) => folder,
            Err(error) => return Ok(Err(error)),
        };
        let written = write_file(&folder, &temporary, entry)
            .and_then(|()| Ok(rustix::fs::renameat(&folder, &temporary, &folder, name)?));
        if written.is_err() {
            // It may not have come to be.
            let _ = rustix::fs::unlinkat(&folder, &temporary, AtFlags::empty());
        }
        Ok(written)
    }

    fn symlink(&self, folders: &[Vec<u8>], name: &[u8], target: &[u8]) -> io::Result<()> {
        let folder = self.open(folders)?;
        make_way(&folder, name)?;
        Ok(rustix::fs::symlinkat(target, &folder, name)?)
    }

    fn hard_link(&self, folders: &[Vec<u8>], name: &[u8], target: &[Vec<u8>]) -> io::Result<()> {
        let Some((target_name, target_folders)) = target.split_last() else { return Ok(()) };
        let target_folder = self.open(target_folders)?;
        let folder = self.open(folders)?;
        make_way(&folder, name)?;
        // Without AT_SYMLINK_FOLLOW a link to a symbolic link links the link, which was checked when it was made.
        Ok(rustix::fs::linkat(&target_folder, target_name.as_slice(), &folder, name, AtFlags::empty())?)
    }

    fn leave_out(&mut self, name: &[u8], why: &str) {
        self.left_out += 1;
        if self.left_out <= NAMED_MAX {
            say(&format!("left out {}: {why}", printable(&String::from_utf8_lossy(name)).escape_debug()));
        }
    }

    fn finish(self) {
        if self.left_out > NAMED_MAX {
            say(&format!("left out {} more entries", self.left_out - NAMED_MAX));
        }
        // The deepest first, as their parents may not be entered afterwards.
        for (components, mode) in self.folders.iter().rev() {
            if let Ok(folder) = self.open(components) {
                // A directory that keeps its first permissions is complete all the same.
                let _ = rustix::fs::fchmod(&folder, Mode::from_raw_mode(*mode));
            }
        }
    }
}

/// What is in the way is removed, unless it is a directory.
fn make_way(folder: &OwnedFd, name: &[u8]) -> io::Result<()> {
    match rustix::fs::unlinkat(folder, name, AtFlags::empty()) {
        Ok(()) | Err(rustix::io::Errno::NOENT) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn write_file(folder: &OwnedFd, name: &str, entry: &mut Entry<'_, impl Read>) -> io::Result<()> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = rustix::fs::openat(folder, name, flags, Mode::RUSR | Mode::WUSR)?;
    let mut writer = SparseWriter::new(File::from(file));
    let mut buffer = vec![0; 128 * 1024];
    let mut missing = entry.size();
    loop {
        match entry.read(&mut buffer) {
            // A cut-off archive looks like the end of the file.
            Ok(0) if missing > 0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(0) => break,
            Ok(length) => {
                missing = missing.saturating_sub(length as u64);
                writer.write(&buffer[..length])?;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    let file = writer.finish()?;
    let mode = entry.header().mode().unwrap_or(0o644) & 0o777;
    rustix::fs::fchmod(file.as_fd(), Mode::from_raw_mode(mode))?;
    let modified = entry.header().mtime().ok().and_then(|seconds| i64::try_from(seconds).ok());
    if let Some(seconds) = modified {
        let omitted = Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT };
        let times =
            Timestamps { last_access: omitted, last_modification: Timespec { tv_sec: seconds, tv_nsec: 0 } };
        // A time that the file system cannot hold is not worth failing for.
        let _ = rustix::fs::futimens(file.as_fd(), &times);
    }
    Ok(())
}

/// The names of a path; `None` if it is absolute, climbs, is too deep, or holds a NUL.
fn components(path: &[u8]) -> Option<Vec<Vec<u8>>> {
    if path.first() == Some(&b'/') || path.contains(&0) {
        return None;
    }
    let names = path.split(|&byte| byte == b'/').filter(|name| !name.is_empty() && *name != b".");
    let names: Vec<Vec<u8>> = names.map(<[u8]>::to_vec).collect();
    let climbs = names.iter().any(|name| name == b"..");
    (!climbs && names.len() <= DEPTH_MAX).then_some(names)
}

/// Whether a symbolic link in a directory `depth` levels below the target leads to somewhere below the target.
fn stays_inside(depth: usize, link: &[u8]) -> bool {
    if link.is_empty() || link.first() == Some(&b'/') || link.contains(&0) {
        return false;
    }
    let mut level = depth;
    for name in link.split(|&byte| byte == b'/') {
        match name {
            b"" | b"." => {}
            b".." => match level.checked_sub(1) {
                Some(up) => level = up,
                None => return false,
            },
            _ => level += 1,
        }
    }
    true
}

#[cfg(test)]
mod tests;
