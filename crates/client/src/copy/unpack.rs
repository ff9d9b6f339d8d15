//! Unpacking an archive that a guest made: everything in it may be a lie.
//!
//! Every name is walked from the target's descriptor, one component at a time, never through a symbolic link, so that
//! nothing can be written outside. Symbolic links stay what they are, wherever they lead, or are left out if they lead
//! outside, as was asked. FIFOs are made: they hold nothing and give no rights. Devices are never made. Set-id bits are
//! dropped; files take their place complete or not at all. Entries, names, extensions and what is written are all bounded.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use microvm_archive::sparse_map::{Segment, SparseMap};
use microvm_types::files::{FileTime, LeftOut};
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags};
use tar::{Archive, Entry, EntryType};

use crate::copy::budget::Budget;
use crate::copy::sparse::SparseWriter;
use crate::copy::{OutsideLinks, Rules, permissions, temporary};
use crate::error::ClientError;
use extensions::{Extensions, Names};
use folders::{Folders, times};

pub(super) use folders::Attributes;

mod extensions;
mod folders;

/// Deepest nesting of directories.
const DEPTH_MAX: usize = 256;

/// Most entries of one archive; extensions are counted, and nearly every file has one for its time.
const ENTRIES_MAX: u64 = 2_000_000;

/// Longest name of an entry in bytes: `PATH_MAX` of Linux.
const PATH_BYTES_MAX: usize = 4096;

/// Largest file in bytes, holes included: that of ext4 with blocks of 4 KiB.
const SIZE_MAX: u64 = 16 << 40;

/// Unpacks below `target`, which must exist. Names in the archive begin with `prefix`, which is taken off; an archive
/// whose only entry is the prefix itself as a file is refused. A target that was `made` for this gets what its own entry
/// says. What is written comes out of the budget. Returns what was left out.
pub(crate) fn unpack(
    data: impl Read,
    target: &Path,
    prefix: &[u8],
    made: bool,
    rules: &mut Rules,
) -> Result<LeftOut, ClientError> {
    let open = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::openat(CWD, target, open, Mode::empty())
        .map_err(|error| ClientError::file("opening", target, &error.into()))?;
    if !made {
        temporary::sweep(&root, target);
    }
    let mut unpacker =
        Unpacker { folders: Folders::new(root, target), prefix, made, rules, left_out: LeftOut::default() };
    let mut archive = Archive::new(data);
    // Raw: the crate would read extensions of any size into memory.
    let entries = archive.entries().map_err(|error| broken(&error))?.raw(true);
    let mut extensions = Extensions::default();
    for (count, entry) in (0u64..).zip(entries) {
        if count >= ENTRIES_MAX {
            return Err(too_much(format!("more than {ENTRIES_MAX} entries")));
        }
        let mut entry = entry.map_err(|error| broken(&error))?;
        if extensions.take_in(&mut entry).map_err(|error| broken(&error))? {
            continue;
        }
        let names = std::mem::take(&mut extensions).finish(&entry).map_err(|error| broken(&error))?;
        // The length in the file system and the bytes in the archive: either may be the lie.
        let size = names.sparse.unwrap_or(0).max(entry.size());
        if size > SIZE_MAX {
            return Err(too_much(format!("a file of {size} bytes")));
        }
        unpacker.entry(&names, &mut entry)?;
    }
    let Unpacker { folders, left_out, .. } = unpacker;
    folders.finish().map_err(|error| ClientError::file("unpacking", target, &error))?;
    Ok(left_out)
}

fn broken(error: &io::Error) -> ClientError {
    ClientError::invalid("archive_invalid", format!("the archive from the guest cannot be read: {error}"))
}

fn too_much(what: String) -> ClientError {
    ClientError::invalid(
        "archive_invalid",
        format!("the archive from the guest has {what}: copy less at once"),
    )
}

struct Unpacker<'a> {
    folders: Folders,
    prefix: &'a [u8],
    /// The target was made for this archive.
    made: bool,
    rules: &'a mut Rules,
    left_out: LeftOut,
}

impl Unpacker<'_> {
    fn entry(&mut self, names: &Names, entry: &mut Entry<'_, impl Read>) -> Result<(), ClientError> {
        let name = &names.path;
        let Some(components) = components(name) else {
            self.leave_out(name, "its name leads outside or is too long");
            return Ok(());
        };
        let inner = match components.split_first() {
            // Asked for one name, the guest may have packed others beside it.
            Some((first, inner)) if *first == self.prefix => inner,
            // The root of an archive of `/` itself, or of an empty name.
            None => return Ok(()),
            Some(_) if self.prefix.is_empty() => &components[..],
            Some(_) => {
                self.leave_out(name, "it is not what was asked for");
                return Ok(());
            }
        };
        if components.iter().any(|name| temporary::is_temporary(name)) {
            self.leave_out(name, "its name is one of copies that are not complete: rename it");
            return Ok(());
        }
        let kind = entry.header().entry_type();
        let in_header = || entry.header().mtime().ok().and_then(|seconds| i64::try_from(seconds).ok());
        let modified = names.modified.or_else(|| in_header().map(|seconds| FileTime::new(seconds, 0)));
        // A header without a legible mode gets what programs usually give.
        let mode = entry.header().mode().map_or_else(
            |_| if kind.is_dir() { permissions::of(0o755) } else { permissions::of(0o644) },
            permissions::of,
        );
        let attributes = Attributes { mode: Some(mode), modified };
        let Some((last, folders)) = inner.split_last() else {
            if self.made && kind.is_dir() {
                self.folders.of_root = attributes;
            }
            return Ok(());
        };
        let failed = |error: io::Error| ClientError::file("unpacking", OsStr::from_bytes(name), &error);
        match kind {
            EntryType::Directory => {
                self.folders.begin(inner, attributes, &mut self.rules.budget, &failed)?;
            }
            EntryType::Regular | EntryType::Continuous => {
                self.file(folders, last, (entry, names.sparse), attributes, &failed)?
            }
            EntryType::Symlink if names.link.is_empty() || names.link.contains(&0) => {
                self.leave_out(name, "it is a link that leads nowhere");
            }
            EntryType::Symlink
                if self.rules.links == OutsideLinks::Skip && !stays_inside(folders.len(), &names.link) =>
            {
                self.leave_out(name, "it is a link that may lead outside");
            }
            EntryType::Symlink => {
                let folder = self.open(folders, &failed)?;
                make_way(folder, last).map_err(failed)?;
                rustix::fs::symlinkat(names.link.as_slice(), folder, last.as_slice())
                    .map_err(|error| failed(error.into()))?;
                stamp(folder, last, modified);
            }
            EntryType::Fifo => {
                let folder = self.open(folders, &failed)?;
                make_way(folder, last).map_err(failed)?;
                rustix::fs::mknodat(folder, last.as_slice(), FileType::Fifo, mode, 0)
                    .map_err(|error| failed(error.into()))?;
                stamp(folder, last, modified);
            }
            EntryType::Char | EntryType::Block => self.leave_out(name, "it is a device"),
            EntryType::Link => match self.inside(&names.link) {
                Some(target) => self.hard_link(folders, last, &target, name, &failed)?,
                None => self.leave_out(name, "it is a link that leads outside"),
            },
            _ => self.leave_out(name, "it is neither file, directory nor link"),
        }
        Ok(())
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

    fn open(
        &mut self,
        folders: &[Vec<u8>],
        failed: &impl Fn(io::Error) -> ClientError,
    ) -> Result<BorrowedFd<'_>, ClientError> {
        self.folders.open(folders, &mut self.rules.budget, failed)
    }

    fn file(
        &mut self,
        folders: &[Vec<u8>],
        name: &[u8],
        entry: (&mut Entry<'_, impl Read>, Option<u64>),
        attributes: Attributes,
        failed: &impl Fn(io::Error) -> ClientError,
    ) -> Result<(), ClientError> {
        let folder = self.folders.open(folders, &mut self.rules.budget, failed)?;
        let (temporary, file) = temporary::file(folder).map_err(failed)?;
        // Held until it has its name: closed before, it would be taken for left behind.
        let written = write_file(file, entry, attributes, &mut self.rules.budget, failed).and_then(|_held| {
            rustix::fs::renameat(folder, &temporary, folder, name).map_err(|error| failed(error.into()))
        });
        if written.is_err() {
            // It may not have come to be.
            let _ = rustix::fs::unlinkat(folder, &temporary, AtFlags::empty());
        }
        written
    }

    /// Another name for a file or FIFO. For nothing else: a symbolic link may have been checked for the place where it was
    /// made, and would lead elsewhere from another.
    fn hard_link(
        &mut self,
        folders: &[Vec<u8>],
        name: &[u8],
        target: &[Vec<u8>],
        whole_name: &[u8],
        failed: &impl Fn(io::Error) -> ClientError,
    ) -> Result<(), ClientError> {
        let Some((target_name, target_folders)) = target.split_last() else { return Ok(()) };
        // Beside those that are open: a directory that was left would lose its time to the name that is made in it.
        let target_folder = self.folders.find(target_folders).map_err(failed)?;
        let stat = rustix::fs::statat(&target_folder, target_name.as_slice(), AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|error| failed(error.into()))?;
        if !matches!(FileType::from_raw_mode(stat.st_mode), FileType::RegularFile | FileType::Fifo) {
            self.leave_out(whole_name, "it is another name of something that is not a file");
            return Ok(());
        }
        let folder = self.open(folders, failed)?;
        make_way(folder, name).map_err(failed)?;
        rustix::fs::linkat(&target_folder, target_name.as_slice(), folder, name, AtFlags::empty())
            .map_err(|error| failed(error.into()))
    }

    fn leave_out(&mut self, name: &[u8], why: &str) {
        self.left_out.add(String::from_utf8_lossy(name), why);
    }
}

/// Removes what is in the way, unless it is a directory.
fn make_way(folder: BorrowedFd<'_>, name: &[u8]) -> io::Result<()> {
    match rustix::fs::unlinkat(folder, name, AtFlags::empty()) {
        Ok(()) | Err(rustix::io::Errno::NOENT) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Sets the time of a link or FIFO: a nicety that not every file system has.
fn stamp(folder: BorrowedFd<'_>, name: &[u8], modified: Option<FileTime>) {
    if let Some(modified) = modified {
        let _ = rustix::fs::utimensat(folder, name, &times(modified), AtFlags::SYMLINK_NOFOLLOW);
    }
}

/// Writes the content of an entry; that of a sparse file has a size besides, and begins with a map. Returns the file.
fn write_file(
    file: File,
    (entry, sparse): (&mut Entry<'_, impl Read>, Option<u64>),
    attributes: Attributes,
    budget: &mut Budget,
    failed: &impl Fn(io::Error) -> ClientError,
) -> Result<File, ClientError> {
    let mut writer = SparseWriter::new(file);
    let length = entry.size();
    match sparse {
        None => copy(entry, length, &mut writer, budget, failed)?,
        Some(size) => {
            let (map, used) = SparseMap::read(entry, size).map_err(failed)?;
            if used.saturating_add(map.stored()) > length {
                return Err(failed(io::ErrorKind::UnexpectedEof.into()));
            }
            for Segment { offset, length } in map.segments() {
                writer.hole(offset - writer.length()).map_err(failed)?;
                copy(entry, *length, &mut writer, budget, failed)?;
            }
            writer.hole(size - writer.length()).map_err(failed)?;
        }
    }
    let file = writer.finish().map_err(failed)?;
    attributes.give(file.as_fd()).map_err(failed)?;
    Ok(file)
}

/// Copies so many bytes.
fn copy(
    data: &mut impl Read,
    length: u64,
    writer: &mut SparseWriter,
    budget: &mut Budget,
    failed: &impl Fn(io::Error) -> ClientError,
) -> Result<(), ClientError> {
    let mut buffer = vec![0; 128 * 1024];
    let mut missing = length;
    while missing > 0 {
        let room = usize::try_from(missing).unwrap_or(usize::MAX).min(buffer.len());
        match data.read(&mut buffer[..room]) {
            // A cut-off archive looks like the end of the file.
            Ok(0) => return Err(failed(io::ErrorKind::UnexpectedEof.into())),
            Ok(length) => {
                missing -= length as u64;
                budget.charge(writer.write(&buffer[..length]).map_err(failed)?)?;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(failed(error)),
        }
    }
    Ok(())
}

/// The names of a path; `None` if it is absolute, climbs, is too long or too deep, or holds a NUL.
fn components(path: &[u8]) -> Option<Vec<Vec<u8>>> {
    if path.first() == Some(&b'/') || path.contains(&0) || path.len() > PATH_BYTES_MAX {
        return None;
    }
    let names = path.split(|&byte| byte == b'/').filter(|name| !name.is_empty() && *name != b".");
    let names: Vec<Vec<u8>> = names.map(<[u8]>::to_vec).collect();
    let climbs = names.iter().any(|name| name == b"..");
    (!climbs && names.len() <= DEPTH_MAX).then_some(names)
}

/// True if a symbolic link in a directory `depth` levels below the target leads to somewhere below the target.
///
/// It may climb at its beginning only, where the directories it leaves are known to be true ones. After a name, which
/// may be a link itself, nobody can tell from the text where `..` leads.
fn stays_inside(depth: usize, link: &[u8]) -> bool {
    if link.is_empty() || link.first() == Some(&b'/') || link.contains(&0) {
        return false;
    }
    let mut names =
        link.split(|&byte| byte == b'/').filter(|name| !name.is_empty() && *name != b".").peekable();
    let mut climbed = 0;
    while names.next_if(|name| *name == b"..").is_some() {
        climbed += 1;
    }
    climbed <= depth && names.all(|name| name != b"..")
}

#[cfg(test)]
mod fuzz;
#[cfg(test)]
mod tests;
