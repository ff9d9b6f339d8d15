//! The file systems every Linux program expects.

use std::fs;
use std::io::Read as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _, symlink};

use rustix::io::Errno;
use rustix::mount::{MountFlags, mount, mount_bind};

use super::{BootError, failed};

/// Directory of the files that say who this guest is.
const IDENTITY: &str = "/run/microvm";
/// Bytes of them that are kept.
const LONGEST: u64 = 4096;

/// Before anything else: devices, processes, system; and the console as our standard streams.
pub(super) fn early() -> Result<(), BootError> {
    let secure = MountFlags::NOSUID | MountFlags::NOEXEC;
    attach("devtmpfs", "/dev", MountFlags::NOSUID, "mode=0755")?;
    open_console()?;
    attach("proc", "/proc", secure | MountFlags::NODEV, "")?;
    attach("sysfs", "/sys", secure | MountFlags::NODEV, "")
}

/// After the root was switched.
pub(super) fn late() -> Result<(), BootError> {
    let secure = MountFlags::NOSUID | MountFlags::NODEV;
    attach("devpts", "/dev/pts", MountFlags::NOSUID | MountFlags::NOEXEC, "mode=620,gid=5,ptmxmode=666")?;
    attach("tmpfs", "/dev/shm", secure, "mode=1777")?;
    attach("tmpfs", "/run", secure, "mode=0755")?;
    // Both are conveniences that an image may have replaced.
    for (link, target) in [("fd", "/proc/self/fd"), ("stdin", "fd/0"), ("stdout", "fd/1"), ("stderr", "fd/2")]
    {
        let _ = symlink(target, format!("/dev/{link}"));
    }
    // Kernels may lack it: then `mq_open` says so.
    if fs::create_dir_all("/dev/mqueue").is_ok() {
        let _ = mount("mqueue", "/dev/mqueue", "mqueue", secure | MountFlags::NOEXEC, c"");
    }
    let _ = fs::DirBuilder::new().mode(0o1777).create("/run/lock");
    // A kernel without control groups is fine: process groups are used then.
    // Without `favordynmods` (Linux 6.0) every command that joins its group waits for an RCU grace period: 10 ms.
    let groups = |options| attach("cgroup2", "/sys/fs/cgroup", secure | MountFlags::NOEXEC, options);
    if groups("favordynmods").or_else(|_| groups("")).is_err() {
        crate::core::console::say("no control groups: commands are ended by session");
    }
    Ok(())
}

fn attach(kind: &str, target: &str, flags: MountFlags, options: &str) -> Result<(), BootError> {
    if fs::symlink_metadata(target).is_err() {
        fs::create_dir_all(target).map_err(failed(format!("make {target}")))?;
    }
    let options = std::ffi::CString::new(options).expect("options are constants without NUL");
    match mount(kind, target, kind, flags, options.as_c_str()) {
        // Busy: the kernel has mounted it already, as it may do with `devtmpfs`.
        Ok(()) | Err(Errno::BUSY) => Ok(()),
        Err(error) => Err(failed(format!("mount {kind} on {target}"))(error)),
    }
}

/// Puts the files that say who this guest is into memory, over those of the image: a child changes them before its first
/// answer, and a change on the disk costs an emulated guest 3,000 pieces of translated code, then as many seconds later
/// when the kernel writes it back.
///
/// The price is the one of containers: the files can be written but not replaced by renaming another one over them.
pub(super) fn identity_in_memory() {
    for (name, mode) in [("hostname", 0o644), ("machine-id", 0o444)] {
        let over = format!("/etc/{name}");
        if let Err(error) = put_in_memory(&over, &format!("{IDENTITY}/{name}"), mode) {
            crate::core::console::say(&format!("{over} stays on the disk: {error}"));
        }
    }
}

/// A link is left alone: somebody wants the file elsewhere.
fn put_in_memory(over: &str, file: &str, mode: u32) -> std::io::Result<()> {
    fs::DirBuilder::new().mode(0o755).recursive(true).create(IDENTITY)?;
    match fs::symlink_metadata(over) {
        Ok(there) if there.is_symlink() => return Ok(()),
        Ok(_) => {}
        Err(_) => drop(fs::File::create_new(over)?), // a place to mount on
    }
    // A guest may have put a pipe, a terminal or anything else there.
    let flags = libc::O_NONBLOCK | libc::O_NOCTTY | libc::O_NOFOLLOW;
    let found = fs::File::options().read(true).custom_flags(flags).open(over)?;
    if !found.metadata()?.is_file() {
        return Err(std::io::Error::other("it is no file"));
    }
    let mut content = Vec::new();
    found.take(LONGEST).read_to_end(&mut content)?;
    fs::write(file, content)?;
    fs::set_permissions(file, fs::Permissions::from_mode(mode))?;
    Ok(mount_bind(file, over)?)
}

/// The kernel could not open a console for us: the initial file system has no device nodes.
fn open_console() -> Result<(), BootError> {
    let console = fs::File::options()
        .read(true)
        .write(true)
        .open("/dev/console")
        .or_else(|_| fs::File::options().read(true).write(true).open("/dev/null"))
        .map_err(failed("open the console"))?;
    rustix::stdio::dup2_stdin(&console).map_err(failed("use the console"))?;
    rustix::stdio::dup2_stdout(&console).map_err(failed("use the console"))?;
    rustix::stdio::dup2_stderr(&console).map_err(failed("use the console"))
}
