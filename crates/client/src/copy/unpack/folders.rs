//! The directories of a target, walked one component at a time and never through a symbolic link.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use microvm_types::files::FileTime;
use rustix::fs::{Mode, OFlags, Timespec, Timestamps, UTIME_OMIT};
use rustix::io::Errno;

use crate::copy::budget::{self, Budget};
use crate::copy::temporary;
use crate::error::ClientError;

const FOLDER: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Permissions and time of a file or directory. A directory gets them when nothing is put into it any more: a time would not
/// last before, and permissions may keep us from filling it.
#[derive(Debug, Clone, Copy, Default)]
pub(in crate::copy) struct Attributes {
    pub(in crate::copy) mode: Option<Mode>,
    pub(in crate::copy) modified: Option<FileTime>,
}

impl Attributes {
    /// Gives an open file or directory all of them.
    pub(in crate::copy) fn give(self, folder: BorrowedFd<'_>) -> io::Result<()> {
        if let Some(mode) = self.mode {
            rustix::fs::fchmod(folder, mode)?;
        }
        if let Some(time) = self.modified {
            // A time that the file system cannot hold is not worth failing for.
            let _ = rustix::fs::futimens(folder, &times(time));
        }
        Ok(())
    }
}

/// A time for the system calls that set one.
pub(super) fn times(modified: FileTime) -> Timestamps {
    Timestamps {
        // Archives tell no time of access: the file system keeps its own.
        last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
        last_modification: Timespec { tv_sec: modified.seconds(), tv_nsec: modified.nanoseconds().into() },
    }
}

struct Open {
    name: Vec<u8>,
    folder: OwnedFd,
    attributes: Attributes,
}

/// The target and the directories of the last entry, open. Archives go through a tree depth first, so that a directory is
/// complete when an entry lies outside of it; in another order its time may become that of the copy.
pub(super) struct Folders {
    root: OwnedFd,
    /// Path of the target.
    path: PathBuf,
    /// Permissions and times that the target itself gets at the end.
    pub(super) of_root: Attributes,
    open: Vec<Open>,
    /// Device and inode of directories below the target that were looked through for what killed copies left.
    swept: HashSet<(u64, u64)>,
}

/// Directories that are looked through in one copy: some 100 KiB of memory.
const SWEPT_MAX: usize = 4_096;

impl Folders {
    pub(super) fn new(root: OwnedFd, path: &Path) -> Self {
        Self {
            root,
            path: path.to_owned(),
            of_root: Attributes { mode: None, modified: None },
            open: Vec::new(),
            swept: HashSet::new(),
        }
    }

    /// Opens a directory below the target, making what is missing out of the budget. Fails where a link or a file is in
    /// the way.
    pub(super) fn open(
        &mut self,
        names: &[Vec<u8>],
        budget: &mut Budget,
        failed: &impl Fn(io::Error) -> ClientError,
    ) -> Result<BorrowedFd<'_>, ClientError> {
        let common = self.open.iter().zip(names).take_while(|(open, name)| open.name == **name).count();
        self.leave(common).map_err(failed)?;
        for name in &names[common..] {
            self.enter(name, budget, failed)?;
        }
        Ok(self.last().as_fd())
    }

    /// Opens a directory that is there, and leaves those that are open as they are.
    pub(super) fn find(&self, names: &[Vec<u8>]) -> io::Result<OwnedFd> {
        let mut folder = self.root.try_clone()?;
        for name in names {
            folder = rustix::fs::openat(&folder, name.as_slice(), FOLDER, Mode::empty())?;
        }
        Ok(folder)
    }

    /// Opens a directory for its own entry. One that is made for it gets `attributes` when it is complete; those of one
    /// that was here before are not the guest's to choose.
    pub(super) fn begin(
        &mut self,
        names: &[Vec<u8>],
        attributes: Attributes,
        budget: &mut Budget,
        failed: &impl Fn(io::Error) -> ClientError,
    ) -> Result<(), ClientError> {
        let Some((last, parents)) = names.split_last() else { return Ok(()) };
        self.open(parents, budget, failed)?;
        let made = self.enter(last, budget, failed)?;
        if made && let Some(open) = self.open.last_mut() {
            open.attributes = attributes;
        }
        Ok(())
    }

    /// Completes all that is open, the target last.
    pub(super) fn finish(mut self) -> io::Result<()> {
        self.leave(0)?;
        self.of_root.give(self.root.as_fd())
    }

    fn last(&self) -> &OwnedFd {
        self.open.last().map_or(&self.root, |open| &open.folder)
    }

    /// Enters a directory of the last one; `true` if it was made for this.
    fn enter(
        &mut self,
        name: &[u8],
        budget: &mut Budget,
        failed: &impl Fn(io::Error) -> ClientError,
    ) -> Result<bool, ClientError> {
        // For this user alone, and writable, until it is complete: then it gets its own permissions.
        let made = match rustix::fs::mkdirat(self.last(), name, Mode::RWXU) {
            Ok(()) => true,
            Err(Errno::EXIST) => false,
            Err(error) => return Err(failed(error.into())),
        };
        // Directories without end cost the guest a few bytes each, and this host a block each.
        if made {
            budget.charge(budget::DIRECTORY)?;
        }
        // Opened also right after it was made: only what is open is known to be no link.
        let folder = rustix::fs::openat(self.last(), name, FOLDER, Mode::empty());
        let folder = folder.map_err(|error| failed(error.into()))?;
        self.open.push(Open { name: name.to_vec(), folder, attributes: Attributes::default() });
        if !made && self.is_new_here()? {
            let names = self.open.iter().map(|open| OsStr::from_bytes(&open.name));
            temporary::sweep(self.last(), &self.path.join(names.collect::<PathBuf>()));
        }
        Ok(made)
    }

    /// True if the directory that was entered last was not looked through for leftovers yet. An archive may come back to it as
    /// often as it likes.
    fn is_new_here(&mut self) -> Result<bool, ClientError> {
        if self.swept.len() >= SWEPT_MAX {
            return Ok(false);
        }
        let stat = rustix::fs::fstat(self.last())
            .map_err(|error| ClientError::file("examining", &self.path, &io::Error::from(error)))?;
        Ok(self.swept.insert((stat.st_dev, stat.st_ino)))
    }

    /// Completes all directories but the first `keep`, the deepest first.
    fn leave(&mut self, keep: usize) -> io::Result<()> {
        while self.open.len() > keep
            && let Some(open) = self.open.pop()
        {
            open.attributes.give(open.folder.as_fd())?;
        }
        Ok(())
    }
}
