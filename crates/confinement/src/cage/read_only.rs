//! Files of the host that a caged program of the server's own user gets to read.
//!
//! Opened by their paths on the host they could be changed through the descriptor all the same: `fchmod` asks who owns the
//! file and whether the *mount* is writable, not how it was opened. So they are opened inside of the cage, through a mount
//! that is read-only and is gone afterwards. Where the server is root the program has a user of its own, who owns none of them.

use std::fs::{self, File};
use std::io::{self, Error};
use std::os::fd::{AsRawFd as _, OwnedFd};

use camino::Utf8Path;
use nix::fcntl::{AT_FDCWD, OFlag, OpenHow, ResolveFlag, open, openat2};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::Mode;

use super::setup::{CageError, Step as _, remount};
use crate::descriptors::duplicate;
use crate::spec::{CageSpec, FileOwner, OpenFile};

/// The step that fails where a file cannot be opened.
pub(crate) const OPEN_STEP: &str = "opening a disk";
/// The step that fails where another VM has a disk.
pub(crate) const LOCK_STEP: &str = "locking a disk";

/// Files that were opened inside the cage.
#[derive(Default)]
pub(crate) struct ReadOnlyFiles {
    /// Users' disks and the numbers of their descriptors.
    pub(crate) disks: Vec<(OwnedFd, i32)>,
    /// In the order of [`CageSpec::read_only_opens`].
    pub(crate) opens: Vec<OwnedFd>,
}

/// True if the cage opens a file itself, instead of its supervisor.
pub(crate) fn opens_inside(spec: &CageSpec, file: &OpenFile) -> bool {
    spec.user.is_none() && file.owner == FileOwner::User && !file.writable
}

/// Files by which others can be opened once they are mounted; taken before paths of the host are covered.
pub(crate) struct Found {
    disks: Vec<(OwnedFd, OpenFile)>,
    opens: Vec<OwnedFd>,
}

/// Finds what is to be opened inside; nothing if the program has a user of its own.
pub(crate) fn find(spec: &CageSpec) -> Result<Found, CageError> {
    let mut found = Found { disks: Vec::new(), opens: Vec::new() };
    if spec.user.is_some() {
        return Ok(found);
    }
    for file in spec.files.iter().filter(|file| opens_inside(spec, file)) {
        // No symbolic link leads there, as for those that the supervisor opens.
        let resolve = ResolveFlag::RESOLVE_NO_SYMLINKS | ResolveFlag::RESOLVE_NO_MAGICLINKS;
        let how = OpenHow::new().flags(OFlag::O_PATH | OFlag::O_CLOEXEC).resolve(resolve);
        let opened = openat2(AT_FDCWD, file.path.as_std_path(), how)
            .map_err(|error| Error::other(format!("{}: {error}", file.path)));
        found.disks.push((opened.step(OPEN_STEP)?, file.clone()));
    }
    for target in &spec.read_only_opens {
        let source = source_of(spec, target).step("opening what it may read")?;
        let opened = open(source.as_std_path(), OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())
            .map_err(|error| Error::other(format!("{source}: {error}")));
        found.opens.push(opened.step("opening what it may read")?);
    }
    Ok(found)
}

/// Path on the host of a path in the cage.
pub(crate) fn source_of<'a>(spec: &'a CageSpec, target: &Utf8Path) -> io::Result<&'a Utf8Path> {
    let mount = spec.mounts.iter().find(|mount| mount.target == target);
    mount.map(|mount| &*mount.source).ok_or_else(|| Error::other(format!("{target} is not mounted")))
}

/// Opens what was found. `root`: a file system of the cage's own with room for a mount.
pub(crate) fn open_all(found: Found, root: &Utf8Path) -> Result<ReadOnlyFiles, CageError> {
    let mut files = ReadOnlyFiles::default();
    for (disk, file) in found.disks {
        let opened = open_one(&disk, root)
            .map_err(|error| Error::other(format!("{}: {error}", file.path)))
            .step(OPEN_STEP)?;
        // The lock lives with this open file, which is exactly as long as the VMM: no two VMs write one disk.
        if opened.try_lock_shared().is_err() {
            let error = Error::other(format!("{} is in use by another VM", file.path));
            return Err(CageError { step: LOCK_STEP, error });
        }
        files.disks.push((duplicate(opened).step(OPEN_STEP)?, file.descriptor));
    }
    for file in found.opens {
        files.opens.push(open_one(&file, root).step("opening what it may read")?.into());
    }
    Ok(files)
}

fn open_one(found: &OwnedFd, root: &Utf8Path) -> io::Result<File> {
    const NONE: Option<&str> = None;
    let place = root.join(".read-only");
    File::create_new(&place)?;
    let source = format!("/proc/self/fd/{}", found.as_raw_fd());
    mount(Some(source.as_str()), place.as_std_path(), NONE, MsFlags::MS_BIND, NONE)?;
    // Devices stay what they are: a disk may be one.
    let flags = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
    remount(&place, flags | MsFlags::MS_RDONLY)?;
    let opened =
        open(place.as_std_path(), OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK, Mode::empty())?;
    // The open file keeps the mount, which no path leads to any more.
    umount2(place.as_std_path(), MntFlags::MNT_DETACH)?;
    fs::remove_file(&place)?;
    Ok(File::from(opened))
}
