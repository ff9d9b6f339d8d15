//! Inside the child: from a copy of the supervisor to a process that can touch next to nothing.

use std::ffi::CString;
use std::fs;
use std::io::{self, Error};
use std::os::fd::{OwnedFd, RawFd};
use std::path::Path;

use camino::{Utf8Path, Utf8PathBuf};
use landlock::{
    ABI, Access, AccessFs, BitFlags, CompatLevel, Compatible, PathBeneath, PathFd, Ruleset, RulesetAttr,
    RulesetCreatedAttr, make_bitflags,
};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::resource::{Resource, setrlimit};
use rustix::io::Errno;
use rustix::thread::{
    CapabilitySet, CapabilitySets, clear_ambient_capability_set, disable_transparent_huge_pages,
    remove_capability_from_bounding_set, set_capabilities, set_no_new_privs,
};

use super::folders;
use super::read_only::{self, ReadOnlyFiles};
use crate::process::stray::MARK;
use crate::spec::{CageSpec, MountAccess};

/// A step of building the cage that failed.
pub(crate) struct CageError {
    pub(crate) step: &'static str,
    pub(crate) error: Error,
}

pub(crate) trait Step<T> {
    fn step(self, step: &'static str) -> Result<T, CageError>;
}

impl<T, E: Into<Error>> Step<T> for Result<T, E> {
    fn step(self, step: &'static str) -> Result<T, CageError> {
        self.map_err(|error| CageError { step, error: error.into() })
    }
}

/// Becomes the cage's own user, builds its file system and enters it. The process keeps all rights in its own
/// namespaces, so that it can mount; outside it has none from here on. `detached` are the folders of the specification in
/// its order, where the supervisor had to prepare them; otherwise it is empty. Returns what the supervisor left to be opened
/// from inside.
pub(crate) fn enter_file_system(spec: &CageSpec, detached: Vec<OwnedFd>) -> Result<ReadOnlyFiles, CageError> {
    const NONE: Option<&str> = None;
    // A mount point that exists everywhere; what is below it on the host is not seen from here any more.
    let root = Utf8Path::new("/tmp");
    // The server's user can open things that the cage's own user cannot, and sources below /tmp vanish once it is
    // covered: so everything is opened first and mounted by descriptor.
    let mut opened = Vec::new();
    for mount in &spec.mounts {
        match nix::fcntl::open(
            mount.source.as_std_path(),
            nix::fcntl::OFlag::O_PATH | nix::fcntl::OFlag::O_CLOEXEC,
            nix::sys::stat::Mode::empty(),
        ) {
            Ok(descriptor) => opened.push((mount, descriptor)),
            Err(_) if mount.optional => {}
            Err(error) => {
                let error = Error::other(format!("{}: {error}", mount.source));
                return Err(CageError { step: "opening what it may read", error });
            }
        }
    }
    let found = read_only::find(spec)?;
    let detached = if detached.is_empty() { folders::detach(&spec.folders, None)? } else { detached };
    become_own_user(spec.inside_id())?;
    mount(NONE, "/", NONE, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NONE).step("separating its mounts")?;
    mount(
        Some("tmpfs"),
        root.as_std_path(),
        Some("tmpfs"),
        MsFlags::MS_NOSUID | MsFlags::MS_NODEV,
        Some("mode=0755,size=1m"),
    )
    .step("making its root file system")?;
    let files = read_only::open_all(found, root)?;
    for (mount_of, descriptor) in &opened {
        let target = inside(root, &mount_of.target);
        let source = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(descriptor));
        let is_directory = fs::metadata(&source).step("looking at what it may read")?.is_dir();
        make_target(&target, is_directory).step("making a mount point")?;
        mount(Some(source.as_str()), target.as_std_path(), NONE, MsFlags::MS_BIND, NONE).step("mounting")?;
        let mut flags = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_NOSUID;
        flags |= match mount_of.access {
            MountAccess::Read => MsFlags::MS_NODEV | MsFlags::MS_RDONLY,
            MountAccess::Write => MsFlags::MS_NODEV | MsFlags::MS_NOEXEC,
            MountAccess::Device => MsFlags::MS_NOEXEC,
        };
        // Flags of the mount below cannot be taken away in a user namespace; keep them where they are set.
        remount(&target, flags).step("making a mount read-only")?;
    }
    folders::attach(root, &spec.folders, &detached)?;
    drop(detached);
    for (link, target) in [("lib", "usr/lib"), ("lib64", "usr/lib64"), ("bin", "usr/bin")] {
        let path = root.join(link);
        if fs::symlink_metadata(Path::new("/").join(link)).is_ok_and(|found| found.is_symlink())
            && !path.exists()
        {
            std::os::unix::fs::symlink(target, &path).step("linking the libraries")?;
        }
    }
    drop(opened);
    nix::unistd::chdir(root.as_std_path()).step("entering its root file system")?;
    // pivot_root(".", "."): the old root ends up on top of the new one and is taken off at once (pivot_root(2)).
    nix::unistd::pivot_root(".", ".").step("changing its root")?;
    umount2(".", MntFlags::MNT_DETACH).step("leaving the old root")?;
    nix::unistd::chdir("/").step("entering its root file system")?;
    mount(
        NONE,
        "/",
        NONE,
        MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV,
        NONE,
    )
    .step("making its root read-only")?;
    Ok(files)
}

pub(crate) fn inside(root: &Utf8Path, target: &Utf8Path) -> Utf8PathBuf {
    root.join(target.as_str().trim_start_matches('/'))
}

fn make_target(target: &Utf8Path, is_directory: bool) -> io::Result<()> {
    if is_directory {
        return fs::create_dir_all(target);
    }
    if let Some(parent) = target.parent() {
        fs::create_dir_all(parent)?;
    }
    fs::File::create(target).map(|_| ())
}

/// Remounts with `flags`; flags that the mount below has and that are locked are kept.
pub(crate) fn remount(target: &Utf8Path, flags: MsFlags) -> nix::Result<()> {
    const NONE: Option<&str> = None;
    let set = |flags: MsFlags| mount(NONE, target.as_std_path(), NONE, flags, NONE);
    set(flags).or_else(|error| {
        let below = nix::sys::statvfs::statvfs(target.as_std_path())?.flags();
        let mut kept = flags;
        for (have, keep) in [
            (nix::sys::statvfs::FsFlags::ST_NODEV, MsFlags::MS_NODEV),
            (nix::sys::statvfs::FsFlags::ST_NOEXEC, MsFlags::MS_NOEXEC),
            (nix::sys::statvfs::FsFlags::ST_RDONLY, MsFlags::MS_RDONLY),
            (nix::sys::statvfs::FsFlags::ST_NOATIME, MsFlags::MS_NOATIME),
            (nix::sys::statvfs::FsFlags::ST_RELATIME, MsFlags::MS_RELATIME),
        ] {
            if below.contains(have) {
                kept |= keep;
            }
        }
        if kept == flags { Err(error) } else { set(kept) }
    })
}

/// Changes ids; capabilities in the own namespaces stay, since the old id was not their root (capabilities(7)).
fn become_own_user(id: u32) -> Result<(), CageError> {
    let (user, group) = (nix::unistd::Uid::from_raw(id), nix::unistd::Gid::from_raw(id));
    // Without root the kernel forbids changing them, and there are only the user's own (user_namespaces(7)).
    let _ = nix::unistd::setgroups(&[]);
    nix::unistd::setresgid(group, group, group).step("becoming its own group")?;
    nix::unistd::setresuid(user, user, user).step("becoming its own user")?;
    // A change of user makes /proc/self unreadable; the mounts are made through it.
    nix::sys::prctl::set_dumpable(true).step("becoming its own user")
}

/// Gives up every right.
pub(crate) fn drop_rights(spec: &CageSpec) -> Result<(), CageError> {
    if !spec.huge_pages {
        without_huge_pages();
    }
    join_empty_keyring().step("leaving the keyring of whoever started the server")?;
    drop_capabilities().step("dropping capabilities")?;
    setrlimit(Resource::RLIMIT_CORE, 0, 0).step("forbidding core dumps")?;
    if let Some(limit) = spec.file_limit {
        limit_files(limit).step("limiting the size of its files")?;
    }
    restrict_paths(spec)
}

/// Refuses writes beyond `limit` with an error instead of a signal, of which the program would die.
#[allow(unsafe_code)]
fn limit_files(limit: u64) -> nix::Result<()> {
    use nix::sys::signal::{SigHandler, Signal, signal};
    // SAFETY: ignoring a signal installs no handler code. Needed because the wrapper is unsafe for handlers' sake.
    unsafe { signal(Signal::SIGXFSZ, SigHandler::SigIgn) }?;
    setrlimit(Resource::RLIMIT_FSIZE, limit, limit)
}

/// Leaves the session keyring that came down from whoever started the server, for an empty one without a name.
#[allow(unsafe_code)]
fn join_empty_keyring() -> io::Result<()> {
    /// Of linux/keyctl.h.
    const JOIN_SESSION_KEYRING: libc::c_int = 1;
    // SAFETY: without a name the call reads no memory (keyctl_join_session_keyring(3)). Needed because neither rustix nor nix
    // wraps keyctl(2).
    let joined =
        unsafe { libc::syscall(libc::SYS_keyctl, JOIN_SESSION_KEYRING, std::ptr::null::<libc::c_char>()) };
    match Error::last_os_error() {
        // A kernel without keys has no keyrings either.
        error if joined < 0 && error.raw_os_error() != Some(libc::ENOSYS) => Err(error),
        _ => Ok(()),
    }
}

/// Empties every capability set and the bounding set, and forbids ever getting more.
fn drop_capabilities() -> io::Result<()> {
    for number in 0..u64::BITS {
        let capability = CapabilitySet::from_bits_retain(1 << number);
        // Beyond the last capability that the kernel knows there is none to drop.
        match remove_capability_from_bounding_set(capability) {
            Err(Errno::INVAL) => break,
            other => other?,
        }
    }
    clear_ambient_capability_set()?;
    let none = CapabilitySet::empty();
    set_capabilities(None, CapabilitySets { effective: none, permitted: none, inheritable: none })?;
    Ok(set_no_new_privs(true)?)
}

/// No huge pages from here on, also in the program that is executed. A kernel that does not know them has none.
fn without_huge_pages() {
    let _ = disable_transparent_huge_pages(true);
}

/// Mount flags of a writable folder: nothing there becomes a device, a pipe or a socket, on which a program of the
/// host would hang, and nothing there is run.
const FOLDER_ACCESS: BitFlags<AccessFs> = make_bitflags!(AccessFs::{
    ReadFile | ReadDir | WriteFile | Truncate | MakeReg | MakeDir | MakeSym | RemoveFile | RemoveDir | Refer
});

/// Landlock on top of the mounts: reading everywhere in the cage, writing only what was mounted for it. A kernel without
/// Landlock is reported by `layers`.
fn restrict_paths(spec: &CageSpec) -> Result<(), CageError> {
    let abi = ABI::V3;
    let apply = || -> Result<(), Box<dyn std::error::Error>> {
        let mut ruleset = Ruleset::default()
            .set_compatibility(CompatLevel::BestEffort)
            .handle_access(AccessFs::from_all(abi))?
            .create()?
            .add_rule(PathBeneath::new(PathFd::new("/")?, AccessFs::from_read(abi)))?;
        for mount in spec.mounts.iter().filter(|mount| mount.access != MountAccess::Read) {
            if let Ok(path) = PathFd::new(&mount.target) {
                let access = AccessFs::ReadFile | AccessFs::WriteFile | AccessFs::Truncate;
                ruleset = ruleset.add_rule(PathBeneath::new(path, access))?;
            }
        }
        for folder in spec.folders.iter().filter(|folder| folder.writable) {
            ruleset = ruleset.add_rule(PathBeneath::new(PathFd::new(&folder.target)?, FOLDER_ACCESS))?;
        }
        ruleset.restrict_self()?;
        Ok(())
    };
    apply().map_err(|error| CageError {
        step: "restricting paths with Landlock",
        error: Error::other(error.to_string()),
    })
}

/// Moves a descriptor to the number the program expects and lets it survive the exec.
#[allow(unsafe_code)]
pub(crate) fn place_descriptor(from: RawFd, to: RawFd) -> io::Result<()> {
    // SAFETY: dup2 and fcntl on integers; `from` is a descriptor of ours. The numbers chosen for the program are above
    // all descriptors that this single-threaded process has opened by itself. Needed because safe wrappers replace only a
    // descriptor that the caller owns, and here the number is what counts.
    let result = unsafe { if from == to { libc::fcntl(to, libc::F_SETFD, 0) } else { libc::dup2(from, to) } };
    if result < 0 { Err(Error::last_os_error()) } else { Ok(()) }
}

/// Becomes the program. Returns only if that fails.
pub(crate) fn execute(spec: &CageSpec) -> Error {
    let c_string = |text: &str| CString::new(text).map_err(Error::other);
    let prepared = || -> io::Result<(CString, Vec<CString>, Vec<CString>)> {
        let program = c_string(spec.program.as_str())?;
        let mut arguments = vec![program.clone()];
        for argument in &spec.arguments {
            arguments.push(c_string(argument)?);
        }
        let mark = std::env::var(MARK).ok();
        let environment = spec
            .environment
            .iter()
            .map(|(key, value)| (&**key, &**value))
            // The mark of the supervisor is that of its VMM.
            .chain(mark.as_deref().map(|mark| (MARK, mark)))
            .map(|(key, value)| c_string(&format!("{key}={value}")))
            .collect::<io::Result<_>>()?;
        Ok((program, arguments, environment))
    };
    match prepared() {
        Ok((program, arguments, environment)) => {
            match nix::unistd::execve(&program, &arguments, &environment) {
                Ok(never) => match never {},
                Err(error) => error.into(),
            }
        }
        Err(error) => error,
    }
}
