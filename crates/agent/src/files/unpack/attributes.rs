//! Owner, mode and times of an entry.

use std::ffi::OsStr;
use std::io::Read;
use std::os::fd::OwnedFd;

use rustix::fs::{
    AtFlags, Gid, Mode, Timespec, Timestamps, UTIME_OMIT, Uid, chmodat, chownat, fchmod, fchown, futimens,
    utimensat,
};
use rustix::io::Errno;
use tar::Entry;

use super::broken;
use crate::failure::AgentResult;

/// What an entry says of itself besides its name and content.
pub(super) struct Attributes {
    mode: Mode,
    owner: Option<(Uid, Gid)>,
    pub(super) times: Timestamps,
}

/// What could not be set, for a message.
pub(super) type Unset = (&'static str, Errno);

impl Attributes {
    /// Those of an entry; its owner only where this agent may give files away.
    pub(super) fn of(entry: &Entry<'_, impl Read>, may_change_owner: bool) -> AgentResult<Self> {
        let header = entry.header();
        let number = |result: std::io::Result<u64>| {
            result.ok().and_then(|value| u32::try_from(value).ok()).filter(|value| *value != u32::MAX)
        };
        let owner = number(header.uid()).zip(number(header.gid())).filter(|_| may_change_owner);
        let seconds = i64::try_from(header.mtime().unwrap_or(0)).unwrap_or(0);
        Ok(Self {
            mode: Mode::from_raw_mode(header.mode().map_err(broken)? & 0o7777),
            owner: owner.map(|(uid, gid)| (Uid::from_raw(uid), Gid::from_raw(gid))),
            times: Timestamps {
                last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
                last_modification: Timespec { tv_sec: seconds, tv_nsec: 0 },
            },
        })
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

    /// Gives a symbolic link its owner and times.
    pub(super) fn give_link(&self, parent: &OwnedFd, leaf: &OsStr) -> Result<(), Unset> {
        if let Some((uid, gid)) = self.owner {
            chownat(parent, leaf, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
                .map_err(|error| ("change the owner of", error))?;
        }
        // Times of links are a nicety that not every file system has.
        let _ = utimensat(parent, leaf, &self.times, AtFlags::SYMLINK_NOFOLLOW);
        Ok(())
    }

    /// Gives a FIFO or device that was just made all it is to have.
    pub(super) fn give_special(&self, parent: &OwnedFd, leaf: &OsStr) -> Result<(), Unset> {
        if let Some((uid, gid)) = self.owner {
            chownat(parent, leaf, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
                .map_err(|error| ("change the owner of", error))?;
        }
        // It is no link: it was made a moment ago, by name, where there was nothing.
        chmodat(parent, leaf, self.mode, AtFlags::empty()).map_err(|error| ("set the mode of", error))?;
        utimensat(parent, leaf, &self.times, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|error| ("set the times of", error))
    }
}
