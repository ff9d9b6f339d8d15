//! The directory that no entry of an archive may leave.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Uid, fchown, fstat, mkdirat, openat, openat2, statat,
    unlinkat,
};
use rustix::io::Errno;
use rustix::process::geteuid;

use crate::core::failure::{AgentError, AgentResult, show};
use crate::platform::linux::files::owner::Owner;
use crate::platform::linux::files::path::failed;

/// The directory below which entries are unpacked.
pub(super) struct Target {
    root: OwnedFd,
    /// The directory of the last entry: archives come directory by directory.
    parent: Option<(PathBuf, Arc<OwnedFd>)>,
    /// It is the guest's root.
    whole_guest: bool,
    /// Owner of directories that no entry names.
    owner: Option<Owner>,
}

pub(super) fn refused(name: &[u8], why: &str) -> AgentError {
    AgentError::invalid(format!("the archive's entry {} is refused: {why}", show(name)))
}

impl Target {
    pub(super) fn open(path: &Path, owner: Option<Owner>) -> AgentResult<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open(path, flags, Mode::empty()).map_err(failed("open", path))?;
        Ok(Self { root, parent: None, whole_guest: path.components().eq([Component::RootDir]), owner })
    }

    /// The open directory an entry lies in, and its name there. Missing directories are made.
    pub(super) fn place(&mut self, path: &Path) -> AgentResult<(Arc<OwnedFd>, OsString)> {
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

    /// True if a symbolic link to a directory of the target is there (`bin` of a merged `/usr`): entries below go through
    /// it, and owner, mode and times of that directory stay its own.
    pub(super) fn is_linked_directory(&self, parent: &OwnedFd, leaf: &OsStr, path: &Path) -> bool {
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

    /// Gives a directory that was just made to its owner; another one in its place is taken for it only if it is as good as it.
    fn give(&self, parent: &OwnedFd, name: &OsStr) -> rustix::io::Result<()> {
        let Some(owner) = self.owner else { return Ok(()) };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let made = openat(parent, name, flags, Mode::empty())?;
        if fstat(&made)?.st_uid != geteuid().as_raw() {
            return Err(Errno::AGAIN);
        }
        fchown(&made, Some(Uid::from_raw(owner.uid)), Some(Gid::from_raw(owner.gid)))
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
                Ok(()) => self.give(&directory, part.as_os_str()).map_err(failed)?,
                Err(Errno::EXIST) => {}
                Err(error) => return Err(failed(error)),
            }
            so_far.push(part);
            // From the root each time: a part of the path may be a link to another place in the target.
            directory = open(&so_far).map_err(failed)?;
        }
        Ok(directory)
    }
}

/// Makes something; a file or link of that name gives way.
pub(super) fn replacing<T>(
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
pub(super) fn inside(name: &[u8]) -> AgentResult<PathBuf> {
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
