//! Folders of users in the cage: mounts that no path of the host leads to, with owners mapped and every flag set that takes
//! something away.
//!
//! The VMM of a server that is root runs as a user of its own, to whom a folder of somebody else's is closed or read-only.
//! An *idmapped* mount (mount_setattr(2)) shows what belongs to the folder's owner as the VMM's, and stores what the VMM
//! makes as the owner's. Only root of the host may make one, so the supervisor does, before the cage exists. A server that
//! is not root has VMMs of its own user's: they need no map, and the mount is made inside.

use std::fs;
use std::io::{self, Error, Read as _};
use std::mem;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::MetadataExt as _;

use camino::{Utf8Path, Utf8PathBuf};
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use nix::mount::{MsFlags, mount};
use rustix::fs::CWD;
use rustix::io::Errno;
use rustix::mount::{MoveMountFlags, OpenTreeFlags, move_mount, open_tree};

use super::setup::{CageError, Step as _, inside};
use crate::clone::{Side, clone};
use crate::spec::Folder;

/// The step that fails where a folder cannot be shown, so that it can be told from faults of the cage.
pub const FOLDER_STEP: &str = "sharing a folder";

// linux/mount.h.
const MOUNT_ATTR_RDONLY: u64 = 0x1;
const MOUNT_ATTR_NOSUID: u64 = 0x2;
const MOUNT_ATTR_NODEV: u64 = 0x4;
const MOUNT_ATTR_NOEXEC: u64 = 0x8;
const MOUNT_ATTR_NOSYMFOLLOW: u64 = 0x0020_0000;
const MOUNT_ATTR_IDMAP: u64 = 0x0010_0000;

/// `struct mount_attr` of linux/mount.h.
#[repr(C)]
struct MountAttributes {
    set: u64,
    clear: u64,
    propagation: u64,
    user_namespace: u64,
}

/// Makes a detached mount of every folder. `user`: the id outside the cage that its owner is mapped to.
pub(crate) fn detach(folders: &[Folder], user: Option<u32>) -> Result<Vec<OwnedFd>, CageError> {
    folders
        .iter()
        .map(|folder| {
            detach_one(folder, user).map_err(|error| CageError {
                step: FOLDER_STEP,
                error: Error::other(format!("{}: {error}", folder.source)),
            })
        })
        .collect()
}

fn detach_one(folder: &Folder, user: Option<u32>) -> io::Result<OwnedFd> {
    // The path was real when it was looked at; whoever can change it since does not choose what is shared.
    let how = OpenHow::new()
        .flags(OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_NO_SYMLINKS | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    let opened = openat2(nix::fcntl::AT_FDCWD, folder.source.as_std_path(), how)?;
    let mut set = MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC | MOUNT_ATTR_NOSYMFOLLOW;
    if !folder.writable {
        set |= MOUNT_ATTR_RDONLY;
    }
    let Some(user) = user else {
        // What is mounted below may not be taken away in a namespace without rights outside: it comes along.
        let (tree, deep) = match detached_mount(&opened, OpenTreeFlags::empty()) {
            Err(Errno::INVAL) => (detached_mount(&opened, OpenTreeFlags::AT_RECURSIVE)?, libc::AT_RECURSIVE),
            plain => (plain?, 0),
        };
        set_attributes(&tree, deep, set, None)?;
        return Ok(tree);
    };
    let tree = detached_mount(&opened, OpenTreeFlags::empty())?;
    let owner = fs::metadata(format!("/proc/self/fd/{}", opened.as_raw_fd()))?;
    let namespace = user_namespace((owner.uid(), owner.gid()), user)?;
    set_attributes(&tree, 0, set, Some(&namespace)).map_err(|error| match error.raw_os_error() {
        Some(libc::EINVAL | libc::EPERM | libc::EOPNOTSUPP | libc::ENOSYS) => Error::other(format!(
            "its file system cannot show it with another owner ({error}): share a folder on ext4, xfs, btrfs or \
             tmpfs under Linux 5.12 or newer, or run the server as the folder's owner instead of as root"
        )),
        _ => error,
    })?;
    Ok(tree)
}

/// Puts the detached mounts in their places below `root`, and a `/proc` of the cage's own beside them.
pub(crate) fn attach(root: &Utf8Path, folders: &[Folder], detached: &[OwnedFd]) -> Result<(), CageError> {
    if folders.is_empty() {
        return Ok(());
    }
    for (folder, tree) in folders.iter().zip(detached) {
        let target = inside(root, &folder.target);
        fs::create_dir_all(&target).step(FOLDER_STEP)?;
        move_mount(tree, "", CWD, target.as_std_path(), MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
            .step(FOLDER_STEP)?;
    }
    let target = inside(root, Utf8Path::new("/proc"));
    fs::create_dir_all(&target).step(FOLDER_STEP)?;
    mount_proc(&target).map_err(|error| CageError {
        step: FOLDER_STEP,
        error: Error::other(format!(
            "the cage gets no /proc ({error}): is this a container that hides parts of its own? Give it a whole one"
        )),
    })
}

/// It shows the VMM and nothing else: the cage has its own process namespace.
fn mount_proc(target: &Utf8PathBuf) -> nix::Result<()> {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    let with = |options| mount(Some("proc"), target.as_std_path(), Some("proc"), flags, options);
    // Before Linux 5.8 the whole of it comes.
    with(Some("subset=pid")).or_else(|_| with(None::<&str>))
}

/// A user namespace in which the ids `owner` stand for `user` outside: what an idmapped mount is told by.
fn user_namespace(owner: (u32, u32), user: u32) -> io::Result<OwnedFd> {
    let (read, write) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
    match clone(libc::CLONE_NEWUSER)? {
        Side::Child => {
            drop(write);
            // Until the supervisor has taken the namespace, or is gone.
            let _ = fs::File::from(read).read(&mut [0]);
            std::process::exit(0);
        }
        Side::Parent(pid) => {
            let taken = || -> io::Result<OwnedFd> {
                fs::write(format!("/proc/{pid}/uid_map"), format!("{} {user} 1", owner.0))?;
                fs::write(format!("/proc/{pid}/gid_map"), format!("{} {user} 1", owner.1))?;
                Ok(fs::File::open(format!("/proc/{pid}/ns/user"))?.into())
            };
            let namespace = taken();
            drop((read, write));
            nix::sys::wait::waitpid(nix::unistd::Pid::from_raw(pid), None)?;
            namespace
        }
    }
}

/// A mount of what is opened, in no place yet.
fn detached_mount(opened: &OwnedFd, deep: OpenTreeFlags) -> rustix::io::Result<OwnedFd> {
    let flags =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    open_tree(opened, "", flags | deep)
}

// No library has a safe wrapper of mount_setattr(2).
#[allow(unsafe_code)]
fn set_attributes(tree: &OwnedFd, deep: libc::c_int, set: u64, map: Option<&OwnedFd>) -> io::Result<()> {
    let descriptor = map.map_or(0, |namespace| u64::from(namespace.as_raw_fd().cast_unsigned()));
    let set = if map.is_some() { set | MOUNT_ATTR_IDMAP } else { set };
    // Private: what the host mounts below the folder later does not appear in the cage.
    let attributes =
        MountAttributes { set, clear: 0, propagation: libc::MS_PRIVATE, user_namespace: descriptor };
    // SAFETY: the path ends with NUL, and the structure is live, of the layout and the size that are named.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH | deep,
            &raw const attributes,
            mem::size_of::<MountAttributes>(),
        )
    };
    if result < 0 { Err(Error::last_os_error()) } else { Ok(()) }
}
