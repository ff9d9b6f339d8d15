//! Owner, mode and times of an entry.

use std::ffi::OsStr;
use std::os::fd::{AsRawFd as _, OwnedFd};

use microvm_archive::{AclKind, Entry};
use rustix::fs::{
    AtFlags, CWD, FileType, Gid, Mode, OFlags, Timespec, Timestamps, UTIME_OMIT, Uid, chmodat, chownat,
    fchmod, fchown, fstat, futimens, openat, utimensat,
};
use rustix::io::Errno;
use rustix::process::geteuid;

use crate::platform::linux::files::owner::Owner;

/// Owner, mode and times of an entry.
pub(super) struct Attributes {
    mode: Mode,
    owner: Option<(Uid, Gid)>,
    pub(super) times: Timestamps,
}

/// Step that failed, in words for a message, and its error.
pub(super) type Unset = (&'static str, Errno);

impl Attributes {
    /// Those of an entry; another owner only where this agent may give files away. `given` takes the place of the entry's.
    pub(super) fn of(entry: &Entry, may_change_owner: bool, given: Option<Owner>) -> Self {
        let (uid, gid) = given.map_or((entry.uid, entry.gid), |owner| (owner.uid, owner.gid));
        Self {
            mode: mode(entry),
            owner: may_change_owner.then(|| (Uid::from_raw(uid), Gid::from_raw(gid))),
            times: Timestamps {
                last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
                last_modification: Timespec { tv_sec: entry.modified, tv_nsec: entry.modified_ns.into() },
            },
        }
    }

    /// For what was there before and keeps its owner.
    pub(super) const fn keep_owner(&mut self) {
        self.owner = None;
    }

    /// Gives an open file or directory its owner and mode, in this order: changing the owner clears set-id bits.
    pub(super) fn give(&self, file: &OwnedFd) -> Result<(), Unset> {
        if let Some((uid, gid)) = self.owner {
            fchown(file, Some(uid), Some(gid)).map_err(|error| ("change the owner of", error))?;
        }
        fchmod(file, self.mode).map_err(|error| ("set the mode of", error))
    }

    /// Sets the times of an open file that is complete.
    pub(super) fn stamp(&self, file: &OwnedFd) -> Result<(), Unset> {
        futimens(file, &self.times).map_err(|error| ("set the times of", error))
    }

    /// Gives something that must not be opened, and that was just made, all it is to have; a link has no mode.
    pub(super) fn give_made(&self, made: &Made) -> Result<(), Unset> {
        if let Some((uid, gid)) = self.owner {
            chownat(&made.seen, "", Some(uid), Some(gid), AtFlags::EMPTY_PATH)
                .map_err(|error| ("change the owner of", error))?;
        }
        // fchmod and futimens refuse descriptors of this kind; their name below /proc is the file itself.
        let path = format!("/proc/self/fd/{}", made.seen.as_raw_fd());
        if made.kind == FileType::Symlink {
            // Times of links are a nicety that not every file system has.
            let _ = utimensat(CWD, &*path, &self.times, AtFlags::empty());
            return Ok(());
        }
        chmodat(CWD, &*path, self.mode, AtFlags::empty()).map_err(|error| ("set the mode of", error))?;
        utimensat(CWD, &*path, &self.times, AtFlags::empty()).map_err(|error| ("set the times of", error))
    }
}

/// The mode of an entry. With an access control list its group bits are the list's mask; they come with the list, so that the
/// owning group gets nothing that the list denies it, before the list is set and if it cannot be set.
fn mode(entry: &Entry) -> Mode {
    let is_list = |kind| kind == Some(AclKind::Access);
    let has_list = entry.acls.iter().any(|(kind, _)| is_list(Some(*kind)))
        || entry.xattrs.iter().any(|(name, _)| is_list(AclKind::of_xattr(name)));
    Mode::from_raw_mode((if has_list { entry.mode & !0o070 } else { entry.mode }).into())
}

/// A link, FIFO or device that was just made, held without being opened.
///
/// A program of the guest may put something else in its place meanwhile. That is taken for it only if it is as good as it:
/// of the same kind, of the agent's own user, and under no other name.
pub(super) struct Made {
    pub(super) seen: OwnedFd,
    kind: FileType,
}

impl Made {
    pub(super) fn hold(parent: &OwnedFd, leaf: &OsStr, kind: FileType) -> Result<Self, Unset> {
        let hold = || {
            let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let seen = openat(parent, leaf, flags, Mode::empty())?;
            let found = fstat(&seen)?;
            let same = FileType::from_raw_mode(found.st_mode) == kind
                && found.st_uid == geteuid().as_raw()
                && found.st_nlink == 1;
            if same { Ok(Self { seen, kind }) } else { Err(Errno::AGAIN) }
        };
        hold().map_err(|error| ("find again", error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_took_the_place_of_what_was_made_gets_nothing() {
        use std::os::unix::fs::MetadataExt as _;
        let directory = std::env::temp_dir().join(format!("made-{}", std::process::id()));
        std::fs::create_dir(&directory).unwrap();
        std::fs::write(directory.join("secret"), "x").unwrap();
        std::os::unix::fs::symlink("secret", directory.join("link")).unwrap();
        let parent = OwnedFd::from(std::fs::File::open(&directory).unwrap());
        let hold = |name: &str, kind| Made::hold(&parent, OsStr::new(name), kind);
        let facts = |name: &str| {
            let found = std::fs::symlink_metadata(directory.join(name)).unwrap();
            (found.mode() & 0o7777, found.mtime())
        };
        let attributes = Attributes {
            mode: Mode::from_raw_mode(0o4666),
            owner: None,
            times: Timestamps {
                last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
                last_modification: Timespec { tv_sec: 77, tv_nsec: 0 },
            },
        };
        let before = facts("secret");
        // A link in place of a FIFO, a file, and a second name of something else.
        assert_eq!(hold("link", FileType::Fifo).err(), Some(("find again", Errno::AGAIN)));
        assert_eq!(hold("secret", FileType::Fifo).err(), Some(("find again", Errno::AGAIN)));
        std::fs::hard_link(directory.join("secret"), directory.join("name")).unwrap();
        assert!(hold("secret", FileType::RegularFile).is_err());
        // What was held is what is changed, also when its name leads elsewhere by then.
        let link = hold("link", FileType::Symlink).unwrap();
        std::fs::rename(directory.join("link"), directory.join("moved")).unwrap();
        std::os::unix::fs::symlink("secret", directory.join("link")).unwrap();
        attributes.give_made(&link).unwrap();
        assert_eq!((facts("secret"), facts("moved").1), (before, 77));
        assert_ne!(facts("link").1, 77);
        std::fs::remove_dir_all(&directory).unwrap();
    }
}
