//! Owner, mode and times of an entry.

use std::ffi::OsStr;
use std::io::Read;
use std::os::fd::{AsRawFd as _, OwnedFd};

use rustix::fs::{
    AtFlags, CWD, FileType, Gid, Mode, OFlags, Timespec, Timestamps, UTIME_OMIT, Uid, chmodat, chownat,
    fchmod, fchown, fstat, futimens, openat, utimensat,
};
use rustix::io::Errno;
use tar::Entry;

use super::broken;
use crate::failure::AgentResult;
use crate::files::owner::Owner;

/// What an entry says of itself besides its name and content.
pub(super) struct Attributes {
    mode: Mode,
    owner: Option<(Uid, Gid)>,
    pub(super) times: Timestamps,
}

/// What could not be set, for a message.
pub(super) type Unset = (&'static str, Errno);

impl Attributes {
    /// Those of an entry; another owner only where this agent may give files away. `given` takes the place of the entry's.
    pub(super) fn of(
        entry: &mut Entry<'_, impl Read>,
        may_change_owner: bool,
        given: Option<Owner>,
    ) -> AgentResult<Self> {
        let exact = exact_time(entry)?;
        let header = entry.header();
        let number = |result: std::io::Result<u64>| {
            result.ok().and_then(|value| u32::try_from(value).ok()).filter(|value| *value != u32::MAX)
        };
        let in_archive = || number(header.uid()).zip(number(header.gid()));
        let owner = given.map(|owner| (owner.uid, owner.gid)).or_else(in_archive);
        let owner = owner.filter(|_| may_change_owner);
        let in_header = || Timespec {
            tv_sec: header.mtime().ok().and_then(|seconds| i64::try_from(seconds).ok()).unwrap_or(0),
            tv_nsec: 0,
        };
        Ok(Self {
            mode: Mode::from_raw_mode(header.mode().map_err(broken)? & 0o7777),
            owner: owner.map(|(uid, gid)| (Uid::from_raw(uid), Gid::from_raw(gid))),
            times: Timestamps {
                last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
                last_modification: exact.unwrap_or_else(in_header),
            },
        })
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
        set_mode(parent, leaf, self.mode).map_err(|error| ("set the mode of", error))?;
        utimensat(parent, leaf, &self.times, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|error| ("set the times of", error))
    }
}

/// Sets the mode of something that must not be opened. A program of the guest may have put a link in its place since it was
/// made: the mode is changed of what was looked at, never of what a link leads to.
fn set_mode(parent: &OwnedFd, leaf: &OsStr, mode: Mode) -> rustix::io::Result<()> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let seen = openat(parent, leaf, flags, Mode::empty())?;
    if FileType::from_raw_mode(fstat(&seen)?.st_mode) == FileType::Symlink {
        return Err(Errno::LOOP);
    }
    // fchmod refuses descriptors of this kind; their name below /proc is the file itself.
    chmodat(CWD, format!("/proc/self/fd/{}", seen.as_raw_fd()), mode, AtFlags::empty())
}

/// The time of an entry from its pax records: with nanoseconds, and before 1970.
fn exact_time(entry: &mut Entry<'_, impl Read>) -> AgentResult<Option<Timespec>> {
    let Some(records) = entry.pax_extensions().map_err(broken)? else { return Ok(None) };
    for record in records {
        let record = record.map_err(broken)?;
        if record.key_bytes() == b"mtime" {
            let time = std::str::from_utf8(record.value_bytes()).ok().and_then(decimal);
            let bad = || broken(std::io::Error::other("the time of an entry is no number"));
            return time.map(Some).ok_or_else(bad);
        }
    }
    Ok(None)
}

/// A decimal number of seconds; digits after the ninth of the fraction are cut off.
fn decimal(text: &str) -> Option<Timespec> {
    let (sign, digits) = text.strip_prefix('-').map_or((1, text), |digits| (-1, digits));
    let (whole, part) = digits.split_once('.').unwrap_or((digits, ""));
    if part.bytes().any(|byte| !byte.is_ascii_digit()) {
        return None;
    }
    let part: String = part.chars().chain(std::iter::repeat('0')).take(9).collect();
    let (whole, part): (u64, u32) = (whole.parse().ok()?, part.parse().ok()?);
    let total = sign * (i128::from(whole) * 1_000_000_000 + i128::from(part));
    let tv_sec = i64::try_from(total.div_euclid(1_000_000_000)).ok()?;
    Some(Timespec { tv_sec, tv_nsec: i64::try_from(total.rem_euclid(1_000_000_000)).ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mode_is_never_given_to_what_a_link_leads_to() {
        use std::os::unix::fs::PermissionsExt as _;
        let directory = std::env::temp_dir().join(format!("modes-{}", std::process::id()));
        std::fs::create_dir(&directory).unwrap();
        std::fs::write(directory.join("secret"), "x").unwrap();
        std::os::unix::fs::symlink("secret", directory.join("link")).unwrap();
        let mode_of_secret = || std::fs::metadata(directory.join("secret")).unwrap().permissions().mode();
        let before = mode_of_secret();
        let parent = OwnedFd::from(std::fs::File::open(&directory).unwrap());
        let mode = Mode::from_raw_mode(0o4666);
        assert_eq!(set_mode(&parent, OsStr::new("link"), mode), Err(Errno::LOOP));
        assert_eq!(mode_of_secret(), before);
        set_mode(&parent, OsStr::new("secret"), mode).unwrap();
        assert_eq!(mode_of_secret() & 0o7777, 0o4666);
        std::fs::remove_dir_all(&directory).unwrap();
    }

    #[test]
    fn times_are_rounded_down_to_seconds_and_nanoseconds() {
        let parts = |text| decimal(text).map(|time| (time.tv_sec, time.tv_nsec));
        assert_eq!(parts("981173106.5"), Some((981_173_106, 500_000_000)));
        assert_eq!(parts("-1.000000001"), Some((-2, 999_999_999)));
        assert_eq!(parts("-1"), Some((-1, 0)));
        assert_eq!(parts("7.0000000019"), Some((7, 1)));
        for bad in ["", "x", "1.x", "--1", "99999999999999999999"] {
            assert_eq!(parts(bad), None, "{bad}");
        }
    }
}
