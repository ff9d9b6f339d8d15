//! Owners of what is written.

use std::io::{self, ErrorKind};
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{Gid, Mode, OFlags, Uid, fchmod, fchown, fstat, mkdirat, open, openat};
use rustix::io::Errno;
use rustix::process::geteuid;

use crate::core::failure::AgentResult;
use crate::platform::linux::exec::users;

/// The owner that a request names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Owner {
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// The default user, whom nobody named: what is there already keeps its owner.
    pub(super) is_default: bool,
}

impl Owner {
    /// Resolves `user[:group]`; empty: the default user of commands.
    ///
    /// # Errors
    /// If the guest has no such user or group.
    pub(in crate::platform::linux) fn resolve(specification: &str, default_user: &str) -> AgentResult<Self> {
        let is_default = specification.is_empty();
        let user = users::resolve(if is_default { default_user } else { specification })?;
        Ok(Self { uid: user.uid, gid: user.gid, is_default })
    }
}

/// A directory that was just made.
///
/// A program of the guest may put something else in its place, or lead its path elsewhere, before it has its owner: both are
/// given to what was made, never to what has its name by then.
#[derive(Debug)]
pub(super) struct NewDirectory(OwnedFd);

impl NewDirectory {
    pub(super) fn make(path: &Path, mode: u32) -> io::Result<Self> {
        // Only the root directory has no name, and it exists.
        let (Some(parent), Some(leaf)) = (path.parent(), path.file_name()) else {
            return Err(Errno::EXIST.into());
        };
        let parent = open(parent, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        mkdirat(&parent, leaf, Mode::from_raw_mode(mode))?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let made = openat(&parent, leaf, flags, Mode::empty())?;
        // Another directory in its place is taken for it only if it is as good as it: of the agent's own user.
        if fstat(&made)?.st_uid != geteuid().as_raw() {
            return Err(Errno::AGAIN.into());
        }
        Ok(Self(made))
    }

    pub(super) fn give(&self, owner: Owner) -> io::Result<()> {
        fchown(&self.0, Some(Uid::from_raw(owner.uid)), Some(Gid::from_raw(owner.gid))).map_err(Into::into)
    }

    /// Sets the mode, in which the agent's umask has no say.
    pub(super) fn set_mode(&self, mode: u32) -> io::Result<()> {
        fchmod(&self.0, Mode::from_raw_mode(mode)).map_err(Into::into)
    }
}

/// Makes a directory and its parents; what is made gets the owner.
pub(super) fn make_all(path: &Path, owner: Option<Owner>) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    if let Some(parent) = path.parent() {
        make_all(parent, owner)?;
    }
    match NewDirectory::make(path, 0o755) {
        Ok(made) => owner.map_or(Ok(()), |owner| made.give(owner)),
        Err(error) if error.kind() == ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;

    #[test]
    fn what_was_made_is_changed_and_not_what_has_its_name_by_then() {
        let root = std::env::temp_dir().join(format!("microvm-made-{}", std::process::id()));
        for directory in ["victim/new", "a"] {
            fs::create_dir_all(root.join(directory)).unwrap();
        }
        fs::set_permissions(root.join("victim/new"), Permissions::from_mode(0o700)).unwrap();
        let made = NewDirectory::make(&root.join("a/new"), 0o755).unwrap();
        fs::rename(root.join("a"), root.join("b")).unwrap();
        symlink(root.join("victim"), root.join("a")).unwrap();
        made.set_mode(0o2777).unwrap();
        let mode = |path: &str| fs::metadata(root.join(path)).unwrap().permissions().mode() & 0o7777;
        assert_eq!((mode("victim/new"), mode("b/new")), (0o700, 0o2777));
        symlink("victim", root.join("link")).unwrap();
        for there in ["link", "victim", "victim/new", "a"] {
            let error = NewDirectory::make(&root.join(there), 0o755).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::AlreadyExists, "{there}");
        }
        assert_eq!(NewDirectory::make(Path::new("/"), 0o755).unwrap_err().kind(), ErrorKind::AlreadyExists);
        fs::remove_dir_all(&root).unwrap();
    }
}
