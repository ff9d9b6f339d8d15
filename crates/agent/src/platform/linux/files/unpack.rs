//! A tar stream from the host, below a directory that no entry may leave.
//!
//! FIFOs and devices are made: a device gives nothing of the host, the guest is a machine of its own. What cannot be made
//! is left out and told; only what would leave the target, and what is no archive, ends the stream.

mod attributes;
mod target;
mod xattrs;

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::sync::Arc;

use microvm_archive::{AclKind, ArchiveReader, Entry, EntryType, Limits};
use microvm_protocol::messages::{LeftOut, Written};
use microvm_protocol::mux::StreamHandle;
use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, Timestamps, linkat, makedev, mkdirat, mknodat, openat, symlinkat,
    utimensat,
};
use rustix::io::Errno;

use self::attributes::{Attributes, Made};
use self::target::{Target, inside, refused, replacing};
use self::xattrs::{Names, Xattrs};
use super::owner::{Owner, make_all};
use super::path::{absolute, failed};
use crate::core::blocking::blocking;
use crate::core::bulk::Receiver;
use crate::core::failure::{AgentError, AgentResult, show};

/// Bounds of what an archive may say about one entry before the entry itself: names, attributes and maps are held in memory,
/// and memory that runs out takes the guest's first process with it. A map of 100,000 parts takes 2.4 MB as old GNU archives
/// have it, 6 MB as version 0.0 of pax has it, and 16 bytes a part here.
const LIMITS: Limits = Limits { extension: 8 << 20, globals: 64 << 10, segments: 1 << 18 };

/// Unpacks below `path`, which is made if missing.
///
/// An `owner` takes the place of those in the archive: what is made gets it, and what was there too unless it is the default.
pub(in crate::platform::linux) async fn unpack(
    stream: &Arc<StreamHandle>,
    path: Vec<u8>,
    owner: Option<Owner>,
) -> AgentResult<Written> {
    let mut receiver = Receiver::new(stream);
    blocking(move || {
        let target = absolute(&path)?;
        make_all(target, owner).map_err(failed("make", target))?;
        let mut unpacker = Unpacker {
            target: Target::open(target, owner)?,
            owner,
            directories: Vec::new(),
            buffer: vec![0; 64 * 1024],
            may_change_owner: rustix::process::geteuid().is_root(),
            names: Names::default(),
            left_out: LeftOut::default(),
        };
        let result = unpacker.run(&mut receiver);
        // A stream that broke off explains every error that follows from it.
        if let Some(failure) = receiver.failure.take() {
            return Err(failure.into());
        }
        result?;
        // What follows the archive's end is padding.
        while receiver.next()?.is_some() {}
        let left_out = Some(unpacker.left_out).filter(|left_out| left_out.count > 0);
        Ok(Written { bytes: receiver.received, left_out })
    })
    .await
}

struct Unpacker {
    target: Target,
    /// Directories that are complete when nothing is put into them any more.
    directories: Vec<Pending>,
    buffer: Vec<u8>,
    may_change_owner: bool,
    owner: Option<Owner>,
    names: Names,
    left_out: LeftOut,
}

/// Attributes that a directory gets last: its default list would be inherited by what is made in it, and its time would change.
struct Pending {
    path: PathBuf,
    default_list: Option<Vec<u8>>,
    times: Timestamps,
}

/// An entry on its way to its place.
struct Arrival<'a> {
    name: &'a [u8],
    path: PathBuf,
    parent: Arc<OwnedFd>,
    leaf: OsString,
    attributes: Attributes,
    xattrs: Xattrs,
}

impl Arrival<'_> {
    fn failed(&self, (action, error): (&str, Errno)) -> AgentError {
        match error {
            Errno::XDEV | Errno::LOOP => {
                refused(self.name, "it leads out of the target through a symbolic link")
            }
            error => AgentError::system(format!("{action} {}", show(self.name)), error),
        }
    }

    /// Makes it; a file or link of that name gives way.
    fn make<T>(&self, what: &str, make: impl Fn() -> rustix::io::Result<T>) -> AgentResult<T> {
        replacing(&self.parent, &self.leaf, make).map_err(|error| self.failed((what, error)))
    }
}

fn broken(error: io::Error) -> AgentError {
    AgentError::invalid(format!("the archive cannot be read: {error}"))
}

type Archive<'a> = ArchiveReader<&'a mut Receiver>;

impl Unpacker {
    fn run(&mut self, receiver: &mut Receiver) -> AgentResult<()> {
        let mut archive = ArchiveReader::new(receiver, LIMITS);
        while let Some(entry) = archive.next_entry().map_err(broken)? {
            self.entry(&mut archive, entry)?;
        }
        for directory in std::mem::take(&mut self.directories).iter().rev() {
            self.complete(directory)?;
        }
        Ok(())
    }

    fn complete(&mut self, directory: &Pending) -> AgentResult<()> {
        let Pending { path, default_list, times } = directory;
        let (parent, name) = self.target.place(path)?;
        if let Some(list) = default_list {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            // It may have been replaced by a later entry, and then says nothing of what is there.
            if let Ok(open) = openat(&*parent, &name, flags, Mode::empty())
                && let Err(refused) = xattrs::set(&open, AclKind::Default.xattr(), list)
            {
                self.left_out.add(path.as_os_str().as_bytes(), refused);
            }
        }
        let _ = utimensat(&*parent, name, times, AtFlags::SYMLINK_NOFOLLOW);
        Ok(())
    }

    fn entry(&mut self, archive: &mut Archive<'_>, entry: Entry) -> AgentResult<()> {
        let (kind, name) = (entry.kind, &entry.path);
        let path = inside(name)?;
        if path.as_os_str().is_empty() {
            // The target itself: it is as the caller made it.
            return if kind.is_dir() { Ok(()) } else { Err(refused(name, "it has no name")) };
        }
        let attributes = Attributes::of(&entry, self.may_change_owner, self.owner);
        let xattrs = Xattrs::of(&entry, &mut self.names);
        let (parent, leaf) = self.target.place(&path)?;
        let arrival = Arrival { name, path, parent, leaf, attributes, xattrs };
        match kind {
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                self.file(archive, &entry, &arrival)
            }
            EntryType::Directory => self.directory(arrival),
            EntryType::Symlink => {
                let make = || symlinkat(OsStr::from_bytes(&entry.link), &*arrival.parent, &arrival.leaf);
                arrival.make("make the link", make)?;
                self.give_made(&arrival, FileType::Symlink)
            }
            EntryType::Link => {
                let target = inside(&entry.link)?;
                let (from, from_leaf) = self.target.place(&target)?;
                // A name of itself: what is in the way would be removed, and nothing would be left to name.
                if arrival.path == target {
                    return Ok(());
                }
                let make = || linkat(&*from, &from_leaf, &*arrival.parent, &arrival.leaf, AtFlags::empty());
                arrival.make("make the link", make)
            }
            EntryType::Char | EntryType::Block | EntryType::Fifo => self.special(&entry, &arrival),
            _ => {
                self.left_out.add(name, "entries of its type are not known");
                Ok(())
            }
        }
    }

    fn file(&mut self, archive: &mut Archive<'_>, entry: &Entry, arrival: &Arrival<'_>) -> AgentResult<()> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        // For nobody else until it has its owner and mode.
        let make = || openat(&*arrival.parent, &arrival.leaf, flags, Mode::from_raw_mode(0o600));
        let file = File::from(arrival.make("make", make)?);
        match &entry.segments {
            Some(segments) => self.segments(archive, segments, entry.size, &file, arrival.name)?,
            None => self.content(archive, &file, arrival.name)?,
        }
        let file = OwnedFd::from(file);
        self.drop_inherited(arrival, &file);
        arrival.attributes.give(&file).map_err(|unset| arrival.failed(unset))?;
        self.give_xattrs(arrival, &file);
        arrival.attributes.stamp(&file).map_err(|unset| arrival.failed(unset))
    }

    fn directory(&mut self, mut arrival: Arrival<'_>) -> AgentResult<()> {
        let (mut keeps_owner, mut is_new) = (false, false);
        let Arrival { parent, leaf, path, .. } = &arrival;
        // For nobody else until it has its owner and mode.
        match mkdirat(&**parent, leaf, Mode::from_raw_mode(0o700)) {
            Ok(()) => is_new = true,
            Err(Errno::EXIST) if self.target.is_linked_directory(parent, leaf, path) => return Ok(()),
            Err(Errno::EXIST) if self.owner.is_some_and(|owner| owner.is_default) => {
                keeps_owner = true;
            }
            Err(Errno::EXIST) => {}
            Err(error) => return Err(arrival.failed(("make", error))),
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let directory = match openat(&**parent, leaf, flags, Mode::empty()) {
            Ok(directory) => directory,
            Err(Errno::NOTDIR | Errno::LOOP) => {
                return Err(refused(arrival.name, "something that is no directory is there already"));
            }
            Err(error) => return Err(arrival.failed(("open", error))),
        };
        if keeps_owner {
            arrival.attributes.keep_owner();
        }
        if is_new {
            self.drop_inherited(&arrival, &directory);
        }
        arrival.attributes.give(&directory).map_err(|unset| arrival.failed(unset))?;
        let default_list = arrival.xattrs.take_default_list();
        self.give_xattrs(&arrival, &directory);
        let times = arrival.attributes.times;
        self.directories.push(Pending { path: arrival.path, default_list, times });
        Ok(())
    }

    /// A FIFO or device. Where the kernel or the file system has none of them (a shared folder) it is left out.
    fn special(&mut self, entry: &Entry, arrival: &Arrival<'_>) -> AgentResult<()> {
        let kind = match entry.kind {
            EntryType::Char => FileType::CharacterDevice,
            EntryType::Block => FileType::BlockDevice,
            _ => FileType::Fifo,
        };
        let (major, minor) = entry.device;
        let device = if kind == FileType::Fifo { 0 } else { makedev(major, minor) };
        let make = || mknodat(&*arrival.parent, &arrival.leaf, kind, Mode::from_raw_mode(0o600), device);
        match replacing(&arrival.parent, &arrival.leaf, make) {
            Ok(()) => {}
            Err(error @ (Errno::PERM | Errno::ACCESS | Errno::OPNOTSUPP | Errno::INVAL)) => {
                let what = if kind == FileType::Fifo { "FIFOs" } else { "devices" };
                self.left_out.add(arrival.name, format!("{what} cannot be made there: {error}"));
                return Ok(());
            }
            Err(error) => return Err(arrival.failed(("make", error))),
        }
        self.give_made(arrival, kind)
    }

    /// Gives a link, FIFO or device all it is to have.
    fn give_made(&mut self, arrival: &Arrival<'_>, kind: FileType) -> AgentResult<()> {
        let made = Made::hold(&arrival.parent, &arrival.leaf, kind).map_err(|unset| arrival.failed(unset))?;
        self.drop_inherited(arrival, &made.seen);
        arrival.attributes.give_made(&made).map_err(|unset| arrival.failed(unset))?;
        self.give_xattrs(arrival, &made.seen);
        Ok(())
    }

    fn drop_inherited(&mut self, arrival: &Arrival<'_>, made: &OwnedFd) {
        if let Err(refused) = xattrs::drop_inherited(made) {
            self.left_out.add(arrival.name, refused);
        }
    }

    fn give_xattrs(&mut self, arrival: &Arrival<'_>, file: &OwnedFd) {
        for refused in arrival.xattrs.give(file) {
            self.left_out.add(arrival.name, refused);
        }
    }

    /// Writes the segments of a sparse file of `size` bytes to where they belong; the rest of the file is holes.
    fn segments(
        &mut self,
        archive: &mut Archive<'_>,
        segments: &[(u64, u64)],
        size: u64,
        file: &File,
        name: &[u8],
    ) -> AgentResult<()> {
        let failed = |error| AgentError::system(format!("write {}", show(name)), error);
        for (offset, length) in segments {
            let (mut at, end) = (*offset, offset + length);
            while at < end {
                let wanted = usize::try_from(end - at).unwrap_or(usize::MAX).min(self.buffer.len());
                let part = &mut self.buffer[..wanted];
                archive.read_exact(part).map_err(broken)?;
                file.write_all_at(part, at).map_err(failed)?;
                at += wanted as u64;
            }
        }
        file.set_len(size).map_err(failed)
    }

    /// Writes content; blocks of zeros become holes.
    fn content(&mut self, archive: &mut Archive<'_>, file: &File, name: &[u8]) -> AgentResult<()> {
        let failed = |error| AgentError::system(format!("write {}", show(name)), error);
        let (mut position, mut hole) = (0u64, false);
        loop {
            let mut filled = 0;
            while filled < self.buffer.len() {
                match archive.read(&mut self.buffer[filled..]).map_err(broken)? {
                    0 => break,
                    count => filled += count,
                }
            }
            let block = &self.buffer[..filled];
            hole = filled > 0 && filled == self.buffer.len() && is_zero(block) || (filled == 0 && hole);
            if !hole && filled > 0 {
                file.write_all_at(block, position).map_err(failed)?;
            }
            position += filled as u64;
            if filled < self.buffer.len() {
                break;
            }
        }
        // The extents do not list a hole at the end of the file: only the length shows it.
        if hole { file.set_len(position).map_err(failed) } else { Ok(()) }
    }
}

fn is_zero(block: &[u8]) -> bool {
    let (words, rest) = block.as_chunks::<8>();
    words.iter().all(|word| u64::from_ne_bytes(*word) == 0) && rest.iter().all(|byte| *byte == 0)
}
