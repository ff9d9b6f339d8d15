//! Files that are not complete yet: under a hidden, random name beside its place, held by a lock for as long as its client lives.
//!
//! A client that is killed cannot remove it. The next copy into the directory does: what has such a name, belongs to this user
//! and is held by nobody was left behind. The name tells the boot of the host, because locks of network file systems and
//! shared folders may be known on one host only: what another host, or this one before its last boot, has made stays.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::sync::OnceLock;

use rustix::fs::{
    AtFlags, Dir, FileType, FlockOperation, Mode, OFlags, RawMode, fchmod, flock, fstat, mkdirat, openat,
    statat, unlinkat,
};
use rustix::io::Errno;

const START: &[u8] = b".microvm-";
/// Clients without locks made names that end before it.
const END: &[u8] = b".part";
const DIGITS: usize = 16;
/// Tries before it is an error that another client keeps removing what was just made.
const TRIES: usize = 8;

/// True for names that clients give to what is not complete. Nothing that is to stay may have one.
pub(crate) fn is_temporary(name: &[u8]) -> bool {
    let digits = name.strip_prefix(START).and_then(|rest| rest.strip_suffix(END));
    digits.is_some_and(|digits| digits.len() == DIGITS && digits.iter().all(u8::is_ascii_hexdigit))
}

fn name() -> io::Result<String> {
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes).map_err(|error| io::Error::other(format!("no random numbers: {error}")))?;
    let random = format!("{:016x}", u64::from_ne_bytes(bytes));
    // Without an id of the boot the name is like none of ours, so nobody sweeps it.
    let boot = boot().unwrap_or(&random[..BOOT]);
    Ok(format!(".microvm-{boot}{}.part", &random[BOOT..]))
}

/// Digits of the boot in a name.
const BOOT: usize = 8;

/// The first digits of the id of this boot (random(4)); `None` if it cannot be read: then nothing is known to be ours.
fn boot() -> Option<&'static str> {
    static ID: OnceLock<Option<String>> = OnceLock::new();
    let read = || {
        let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
        let digits = id.get(..BOOT)?;
        digits.bytes().all(|digit| digit.is_ascii_hexdigit()).then(|| digits.to_owned())
    };
    ID.get_or_init(read).as_deref()
}

/// True for names that this boot of this host has given.
fn is_ours(name: &[u8]) -> bool {
    let digits = name.strip_prefix(START).unwrap_or_default();
    is_temporary(name) && boot().is_some_and(|boot| digits.starts_with(boot.as_bytes()))
}

/// Makes a file that only this user may read. It is held until it is closed.
pub(crate) fn file(folder: BorrowedFd<'_>) -> io::Result<(String, File)> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let (name, made) = make(folder, |name| openat(folder, name, flags, Mode::RUSR | Mode::WUSR))?;
    Ok((name, made.into()))
}

/// Makes a directory with permissions 0755. It is held until what is returned is closed.
pub(crate) fn directory(folder: BorrowedFd<'_>) -> io::Result<(String, OwnedFd)> {
    make(folder, |name| {
        mkdirat(folder, name, Mode::RWXU)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let made = openat(folder, name, flags, Mode::empty())?;
        fchmod(&made, Mode::from_raw_mode(0o755))?;
        Ok(made)
    })
}

fn make(
    folder: BorrowedFd<'_>,
    make: impl Fn(&str) -> rustix::io::Result<OwnedFd>,
) -> io::Result<(String, OwnedFd)> {
    for _ in 0..TRIES {
        let name = name()?;
        let made = match make(&name) {
            // Swept away between its making and its opening; the folder itself is there.
            Err(Errno::NOENT) if statat(folder, ".", AtFlags::empty()).is_ok() => continue,
            Err(Errno::EXIST) => continue,
            other => other?,
        };
        // Before it was locked another client may have taken it for left behind.
        match flock(&made, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) => continue,
            // There are no locks here, and so nobody removes it.
            Err(_) => return Ok((name, made)),
            Ok(()) if is_the_one(folder, name.as_bytes(), &made) => return Ok((name, made)),
            Ok(()) => {}
        }
    }
    Err(io::Error::other("other copies into the directory remove what is made for this one: try again"))
}

/// True if a name leads to what is open.
fn is_the_one(folder: BorrowedFd<'_>, name: &[u8], open: &OwnedFd) -> bool {
    let there = statat(folder, name, AtFlags::SYMLINK_NOFOLLOW);
    let (Ok(there), Ok(open)) = (there, fstat(open)) else { return false };
    (there.st_dev, there.st_ino) == (open.st_dev, open.st_ino)
}

/// Removes what killed clients left in a directory. What cannot be removed stays: it takes room, and nothing else.
pub(crate) fn sweep(folder: &impl AsFd, path: &Path) {
    let entries = match list(folder.as_fd()) {
        Ok(entries) => entries,
        // Such as a directory that may be written to and not read.
        Err(error) => {
            tracing::debug!(%error, path = %path.display(), "what killed copies left is not looked for");
            return;
        }
    };
    for entry in entries.flatten() {
        let name = entry.file_name().to_bytes();
        if is_ours(name)
            && let Err(error) = remove(folder.as_fd(), path, name)
        {
            tracing::debug!(%error, path = %path.display(), "what a killed copy left stays");
        }
    }
}

/// Opens the directory anew: one that was opened only as a place in the tree cannot be listed.
fn list(folder: BorrowedFd<'_>) -> rustix::io::Result<Dir> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Dir::new(openat(folder, ".", flags, Mode::empty())?)
}

fn remove(folder: BorrowedFd<'_>, path: &Path, name: &[u8]) -> io::Result<()> {
    // Not blocking: a FIFO with such a name would hold the copy up until somebody writes to it.
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let left = openat(folder, name, flags, Mode::empty())?;
    let found = fstat(&left)?;
    if found.st_uid != rustix::process::geteuid().as_raw() {
        return Ok(());
    }
    match flock(&left, FlockOperation::NonBlockingLockExclusive) {
        Err(Errno::WOULDBLOCK) => return Ok(()),
        other => other?,
    }
    // Its client may have finished and renamed it while the lock was waited for.
    if !is_the_one(folder, name, &left) {
        return Ok(());
    }
    match FileType::from_raw_mode(found.st_mode as RawMode) {
        FileType::RegularFile => Ok(unlinkat(folder, name, AtFlags::empty())?),
        // Whoever may rename entries of the folder could give a directory of this user's such a name.
        FileType::Directory if is_renamed_by_others(folder)? => Ok(()),
        // Links in it are removed, and not followed.
        FileType::Directory => std::fs::remove_dir_all(path.join(OsStr::from_bytes(name))),
        _ => Ok(()),
    }
}

/// True if other users may rename what is in a folder.
fn is_renamed_by_others(folder: BorrowedFd<'_>) -> io::Result<bool> {
    let mode = fstat(folder)?.st_mode;
    let is_mine = fstat(folder)?.st_uid == rustix::process::geteuid().as_raw();
    // With the sticky bit only owners rename their entries (inode(7)).
    Ok((mode & 0o022 != 0 || !is_mine) && mode & 0o1000 == 0)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn what_is_left_behind_goes_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        // As copies open it: as a place in the tree.
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let open = rustix::fs::open(folder.path(), flags, Mode::empty()).unwrap();
        let sweep = || super::sweep(&open, folder.path());
        let names = || {
            let entries = std::fs::read_dir(folder.path()).unwrap();
            let mut names: Vec<_> =
                entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
            names.sort();
            names
        };
        // Not ours: other names, those of another boot or host, a link, and one that an older client may hold without a lock.
        let part = format!(".microvm-{}89abcdef.part", boot().unwrap());
        let foreign = if boot() == Some("01234567") { "11234567" } else { "01234567" };
        std::fs::write(folder.path().join(format!(".microvm-{foreign}89abcdef.part")), "kept").unwrap();
        for name in [".microvm-0123456789abcdef", ".microvm-x.part", "microvm-0123456789abcdef.part", "file"]
        {
            std::fs::write(folder.path().join(name), "kept").unwrap();
        }
        std::os::unix::fs::symlink("file", folder.path().join(&part)).unwrap();
        let kept = names();
        sweep();
        assert_eq!(names(), kept);
        // Held, then left behind.
        let file = file(open.as_fd()).unwrap();
        let directory = directory(open.as_fd()).unwrap();
        std::fs::create_dir(folder.path().join(&directory.0).join("below")).unwrap();
        std::os::unix::fs::symlink(folder.path(), folder.path().join(&directory.0).join("below/link"))
            .unwrap();
        let mode = |name: &str| folder.path().join(name).metadata().unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&file.0), mode(&directory.0)), (0o600, 0o755));
        sweep();
        assert_eq!(names().len(), kept.len() + 2, "what is held was removed");
        drop((file, directory));
        // Others may have renamed the directory, so that it seems to be left behind.
        std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
        sweep();
        assert_eq!(names().len(), kept.len() + 1);
        std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o700)).unwrap();
        sweep();
        assert_eq!(names(), kept);
    }
}
