//! A tar stream from the host, below a directory that no entry may leave.

use std::cell::Cell;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::Read as _;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use microvm_protocol::messages::Written;
use microvm_protocol::mux::StreamHandle;
use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Timespec, Timestamps, UTIME_OMIT, Uid, chownat,
    fchmod, fchown, futimens, linkat, mkdirat, openat, openat2, statat, symlinkat, unlinkat, utimensat,
};
use rustix::io::Errno;
use tar::{Archive, Entry, EntryType};

use super::limited::{Limited, MOST_BEFORE_AN_ENTRY};
use super::path::{absolute, failed};
use super::receiver::Receiver;
use crate::failure::{AgentError, AgentResult, show};

/// Unpacks below `path`, which is made if missing.
pub(crate) async fn unpack(stream: &Arc<StreamHandle>, path: Vec<u8>) -> AgentResult<Written> {
    let mut receiver = Receiver::new(stream);
    super::blocking(move || {
        let target = absolute(&path)?;
        fs::create_dir_all(target).map_err(failed("make", target))?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open(target, flags, Mode::empty()).map_err(failed("open", target))?;
        let mut unpacker = Unpacker {
            root,
            parent: None,
            directories: Vec::new(),
            buffer: vec![0; 64 * 1024],
            whole_guest: target.components().eq([Component::RootDir]),
            may_change_owner: rustix::process::geteuid().is_root(),
        };
        let result = unpacker.run(&mut receiver);
        // A stream that broke off explains every error that follows from it.
        if let Some(failure) = receiver.failure.take() {
            return Err(failure.into());
        }
        result?;
        // What follows the archive's end is padding.
        while receiver.next()?.is_some() {}
        Ok(Written { bytes: receiver.received })
    })
    .await
}

struct Unpacker {
    root: OwnedFd,
    /// The directory of the last entry: archives come directory by directory.
    parent: Option<(PathBuf, Arc<OwnedFd>)>,
    /// Directories whose times are set when nothing is put into them any more.
    directories: Vec<(PathBuf, Timestamps)>,
    buffer: Vec<u8>,
    may_change_owner: bool,
    /// The target is the guest's root.
    whole_guest: bool,
}

fn broken(error: std::io::Error) -> AgentError {
    AgentError::invalid(format!("the archive cannot be read: {error}"))
}

fn refused(name: &[u8], why: &str) -> AgentError {
    AgentError::invalid(format!("the archive's entry {} is refused: {why}", show(name)))
}

impl Unpacker {
    fn run(&mut self, receiver: &mut Receiver) -> AgentResult<()> {
        let budget = Cell::new(None);
        let mut archive = Archive::new(Limited { inner: receiver, budget: &budget });
        let mut entries = archive.entries().map_err(broken)?;
        loop {
            budget.set(Some(MOST_BEFORE_AN_ENTRY));
            let Some(entry) = entries.next() else { break };
            budget.set(None);
            self.entry(entry.map_err(broken)?)?;
        }
        for (path, times) in std::mem::take(&mut self.directories).iter().rev() {
            let (parent, name) = self.place(path)?;
            // It may have been replaced by a later entry.
            let _ = utimensat(&*parent, name, times, AtFlags::SYMLINK_NOFOLLOW);
        }
        Ok(())
    }

    fn entry(&mut self, mut entry: Entry<'_, Limited<'_, &mut Receiver>>) -> AgentResult<()> {
        let name = entry.path_bytes().into_owned();
        let path = inside(&name)?;
        let kind = entry.header().entry_type();
        let number = |result: std::io::Result<u64>| {
            result.ok().and_then(|value| u32::try_from(value).ok()).filter(|value| *value != u32::MAX)
        };
        let mode = entry.header().mode().map_err(broken)? & 0o7777;
        let owner =
            number(entry.header().uid()).zip(number(entry.header().gid())).filter(|_| self.may_change_owner);
        let seconds = i64::try_from(entry.header().mtime().unwrap_or(0)).unwrap_or(0);
        let times = Timestamps {
            last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
            last_modification: Timespec { tv_sec: seconds, tv_nsec: 0 },
        };
        let failed = |action: &str, error: Errno| match error {
            Errno::XDEV | Errno::LOOP => refused(&name, "it leads out of the target through a symbolic link"),
            error => AgentError::system(format!("{action} {}", show(&name)), error),
        };
        if path.as_os_str().is_empty() {
            // The target itself: it is as the caller made it.
            return if kind.is_dir() { Ok(()) } else { Err(refused(&name, "it has no name")) };
        }
        let own = |(uid, gid): (u32, u32)| (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
        match kind {
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                let (parent, leaf) = self.place(&path)?;
                let flags =
                    OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let make = || openat(&*parent, &leaf, flags, Mode::from_raw_mode(0o600));
                let file = replacing(&parent, &leaf, make).map_err(|error| failed("make", error))?;
                let file = File::from(file);
                self.content(&mut entry, &file, &name)?;
                if let Some((uid, gid)) = owner.map(own) {
                    fchown(&file, uid, gid).map_err(|error| failed("change the owner of", error))?;
                }
                fchmod(&file, Mode::from_raw_mode(mode)).map_err(|error| failed("set the mode of", error))?;
                futimens(&file, &times).map_err(|error| failed("set the times of", error))?;
            }
            EntryType::Directory => {
                let (parent, leaf) = self.place(&path)?;
                match mkdirat(&*parent, &leaf, Mode::from_raw_mode(0o700)) {
                    Ok(()) => {}
                    Err(Errno::EXIST) if self.is_linked_directory(&parent, &leaf, &path) => return Ok(()),
                    Err(Errno::EXIST) => {}
                    Err(error) => return Err(failed("make", error)),
                }
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let directory = match openat(&*parent, &leaf, flags, Mode::empty()) {
                    Ok(directory) => directory,
                    Err(Errno::NOTDIR | Errno::LOOP) => {
                        return Err(refused(&name, "something that is no directory is there already"));
                    }
                    Err(error) => return Err(failed("open", error)),
                };
                if let Some((uid, gid)) = owner.map(own) {
                    fchown(&directory, uid, gid).map_err(|error| failed("change the owner of", error))?;
                }
                fchmod(&directory, Mode::from_raw_mode(mode))
                    .map_err(|error| failed("set the mode of", error))?;
                self.directories.push((path, times));
            }
            EntryType::Symlink => {
                let target = entry.link_name_bytes().unwrap_or_default().into_owned();
                let (parent, leaf) = self.place(&path)?;
                let make = || symlinkat(OsStr::from_bytes(&target), &*parent, &leaf);
                replacing(&parent, &leaf, make).map_err(|error| failed("make the link", error))?;
                if let Some((uid, gid)) = owner.map(own) {
                    chownat(&*parent, &leaf, uid, gid, AtFlags::SYMLINK_NOFOLLOW)
                        .map_err(|error| failed("change the owner of", error))?;
                }
                // Times of links are a nicety that not every file system has.
                let _ = utimensat(&*parent, &leaf, &times, AtFlags::SYMLINK_NOFOLLOW);
            }
            EntryType::Link => {
                let target = entry.link_name_bytes().unwrap_or_default().into_owned();
                let (from, from_leaf) = self.place(&inside(&target)?)?;
                let (parent, leaf) = self.place(&path)?;
                if path != inside(&target)? {
                    let make = || linkat(&*from, &from_leaf, &*parent, &leaf, AtFlags::empty());
                    replacing(&parent, &leaf, make).map_err(|error| failed("make the link", error))?;
                }
            }
            EntryType::XGlobalHeader => {}
            EntryType::Char | EntryType::Block | EntryType::Fifo => {
                return Err(refused(&name, "device nodes and FIFOs are not unpacked"));
            }
            _ => return Err(refused(&name, "its type is not known")),
        }
        Ok(())
    }

    /// Writes content; blocks of zeros become holes.
    fn content(
        &mut self,
        entry: &mut Entry<'_, Limited<'_, &mut Receiver>>,
        file: &File,
        name: &[u8],
    ) -> AgentResult<()> {
        let failed = |error| AgentError::system(format!("write {}", show(name)), error);
        let (mut position, mut hole) = (0u64, false);
        loop {
            let mut filled = 0;
            while filled < self.buffer.len() {
                match entry.read(&mut self.buffer[filled..]).map_err(broken)? {
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
        if hole { file.set_len(position).map_err(failed) } else { Ok(()) }
    }

    /// The open directory an entry lies in, and its name there. Missing directories are made.
    fn place(&mut self, path: &Path) -> AgentResult<(Arc<OwnedFd>, OsString)> {
        let name = path.file_name().ok_or_else(|| refused(path.as_os_str().as_bytes(), "it has no name"))?;
        let parent = path.parent().unwrap_or(Path::new(""));
        if let Some((last, directory)) = &self.parent
            && last == parent
        {
            return Ok((Arc::clone(directory), name.to_owned()));
        }
        let directory = Arc::new(self.open_directory(parent)?);
        self.parent = Some((parent.to_path_buf(), Arc::clone(&directory)));
        Ok((directory, name.to_owned()))
    }

    /// Whether a symbolic link to a directory of the target is there (`bin` of a merged `/usr`): entries below go through
    /// it, and owner, mode and times of that directory stay its own.
    fn is_linked_directory(&self, parent: &OwnedFd, leaf: &OsStr, path: &Path) -> bool {
        statat(parent, leaf, AtFlags::SYMLINK_NOFOLLOW)
            .is_ok_and(|found| FileType::from_raw_mode(found.st_mode) == FileType::Symlink)
            && self.open_existing(path).is_ok()
    }

    fn open_existing(&self, path: &Path) -> rustix::io::Result<OwnedFd> {
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        // Nothing is outside of the guest's root: there an absolute link stays inside.
        let bound = if self.whole_guest { ResolveFlags::IN_ROOT } else { ResolveFlags::BENEATH };
        openat2(&self.root, path, flags, Mode::empty(), bound | ResolveFlags::NO_MAGICLINKS)
    }

    fn open_directory(&self, path: &Path) -> AgentResult<OwnedFd> {
        let open = |path: &Path| self.open_existing(path);
        let failed = |error: Errno| match error {
            Errno::XDEV | Errno::LOOP => {
                refused(path.as_os_str().as_bytes(), "it leads out of the target through a symbolic link")
            }
            error => AgentError::system(format!("open {}", show(path.as_os_str().as_bytes())), error),
        };
        match open(path) {
            Ok(directory) => return Ok(directory),
            Err(Errno::NOENT) => {}
            Err(error) => return Err(failed(error)),
        }
        let mut so_far = PathBuf::new();
        let mut directory = open(&so_far).map_err(failed)?;
        for part in path.components() {
            match mkdirat(directory.as_fd(), part.as_os_str(), Mode::from_raw_mode(0o755)) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(error) => return Err(failed(error)),
            }
            so_far.push(part);
            directory = open(&so_far).map_err(failed)?;
        }
        Ok(directory)
    }
}

/// Makes something; a file or link of that name gives way.
fn replacing<T>(
    parent: &OwnedFd,
    name: &OsStr,
    make: impl Fn() -> rustix::io::Result<T>,
) -> rustix::io::Result<T> {
    match make() {
        Err(Errno::EXIST) => {
            unlinkat(parent, name, AtFlags::empty())?;
            make()
        }
        result => result,
    }
}

/// The path of an entry below the target.
fn inside(name: &[u8]) -> AgentResult<PathBuf> {
    if name.contains(&0) || name.len() >= 4096 {
        return Err(refused(name, "its name is too long or contains a NUL byte"));
    }
    let mut path = PathBuf::new();
    for component in Path::new(OsStr::from_bytes(name)).components() {
        match component {
            Component::Normal(part) => path.push(part),
            Component::CurDir => {}
            Component::ParentDir => return Err(refused(name, "its name contains `..`")),
            Component::RootDir | Component::Prefix(_) => return Err(refused(name, "its name is absolute")),
        }
    }
    Ok(path)
}

fn is_zero(block: &[u8]) -> bool {
    let (words, rest) = block.as_chunks::<8>();
    words.iter().all(|word| u64::from_ne_bytes(*word) == 0) && rest.iter().all(|byte| *byte == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_leave_are_refused() {
        for name in [&b"../x"[..], b"a/../../x", b"/etc/passwd", b"a\0b"] {
            assert!(inside(name).is_err(), "{}", show(name));
        }
        assert_eq!(inside(b"./a//b/").unwrap(), Path::new("a/b"));
    }
}
