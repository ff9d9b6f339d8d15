//! The root: image below, scratch above, joined by overlayfs.

use std::ffi::CString;
use std::fs;
use std::os::unix::fs::MetadataExt as _;

use rustix::mount::{MountFlags, mount, mount_move};

use super::disks::Disk;
use super::{BootError, failed};

const ROOT: &str = "/root-of-guest";
const IMAGE: &str = "/image";
const SCRATCH: &str = "/scratch";

/// Mounts the disks and joins them.
pub(super) fn assemble(image: &Disk, scratch: &Disk) -> Result<(), BootError> {
    for directory in [ROOT, IMAGE, SCRATCH] {
        fs::create_dir_all(directory).map_err(failed(format!("make {directory}")))?;
    }
    let none = c"";
    mount(&*image.device, IMAGE, image.file_system, MountFlags::RDONLY | MountFlags::NOATIME, none)
        .map_err(failed(format!("mount the image {}", image.device)))?;
    mount_scratch(scratch).map_err(failed(format!("mount the scratch disk {}", scratch.device)))?;
    let (upper, work) = (format!("{SCRATCH}/upper"), format!("{SCRATCH}/work"));
    if fs::symlink_metadata(&upper).is_err() {
        // Under another name until it is complete: a boot that breaks off here leaves no upper root with wrong
        // attributes.
        let new = format!("{SCRATCH}/upper.new");
        fs::create_dir_all(&new).map_err(failed(format!("make {new}")))?;
        be_like(IMAGE, &new).map_err(failed(format!("make {new} like the root of the image")))?;
        fs::rename(&new, &upper).map_err(failed(format!("make {upper}")))?;
    }
    fs::create_dir_all(&work).map_err(failed(format!("make {work}")))?;
    join(&upper, &work).map_err(failed("join image and scratch disk by overlayfs"))
}

/// Gives a directory owner, mode, extended attributes and times of another: overlayfs shows those of the upper root.
fn be_like(image: &str, upper: &str) -> std::io::Result<()> {
    let metadata = fs::metadata(image)?;
    std::os::unix::fs::chown(upper, Some(metadata.uid()), Some(metadata.gid()))?;
    fs::set_permissions(upper, metadata.permissions())?;
    for (name, value) in crate::platform::linux::files::xattrs(image.as_ref())? {
        if let Err(error) = rustix::fs::lsetxattr(upper, &name[..], &value, rustix::fs::XattrFlags::empty()) {
            let name = String::from_utf8_lossy(&name).into_owned();
            crate::core::console::say(&format!("the root does without its attribute {name}: {error}"));
        }
    }
    fs::File::open(upper)?.set_modified(metadata.modified()?)
}

/// Options of overlayfs with which the root behaves like one file system; in order, the first that the kernel takes.
///
/// `redirect_dir`: directories of the image can be renamed. `index`: hard links of the image stay links of one file when it
/// is written to. `xino`: inode numbers neither repeat nor change. `metacopy` would leave content in the image that an
/// older agent or another kernel does not find. Kernels follow redirects that are on the disk also where they make none,
/// and an upper directory of an agent that asked for nothing is taken as it is.
const WISHES: [&str; 3] =
    [",redirect_dir=on,index=on,xino=on,metacopy=off", ",redirect_dir=on,xino=on,metacopy=off", ""];

fn join(upper: &str, work: &str) -> rustix::io::Result<()> {
    let mut result = Ok(());
    for wish in WISHES {
        let options = CString::new(format!("lowerdir={IMAGE},upperdir={upper},workdir={work}{wish}"))
            .expect("paths are constants without NUL");
        result = mount("overlay", ROOT, "overlay", MountFlags::NOATIME, options.as_c_str());
        match &result {
            Ok(()) => break,
            Err(error) if !wish.is_empty() => {
                crate::core::console::say(&format!("the root does without `{}`: {error}", &wish[1..]));
            }
            Err(_) => {}
        }
    }
    result
}

/// Mounts the scratch disk without ext4's background thread: seconds after the start it would read bitmaps and clear inode
/// tables, which every emulated child of this guest would translate and run again. Kernels before 5.13 do not know the
/// second option.
///
/// `lazytime`: the time of a write over what a file has already is kept in memory until the file's other data, a sync or
/// its eviction takes it along; after a crash such a file may have an older time. Otherwise the line in `/etc/hosts` that
/// each child gets would bring the journal to the disk.
fn mount_scratch(scratch: &Disk) -> rustix::io::Result<()> {
    let quiet = match scratch.file_system {
        "ext4" => c"noinit_itable,no_prefetch_block_bitmaps,lazytime",
        _ => c"",
    };
    let attempt =
        |options| mount(&*scratch.device, SCRATCH, scratch.file_system, MountFlags::NOATIME, options);
    attempt(quiet).or_else(|_| attempt(c""))
}

/// Makes the joined root ours and forgets the initial file system, whose memory is freed.
pub(super) fn switch() -> Result<(), BootError> {
    for directory in ["dev", "proc", "sys"] {
        let target = format!("{ROOT}/{directory}");
        fs::create_dir_all(&target).map_err(failed(format!("make {target}")))?;
        mount_move(format!("/{directory}"), &*target).map_err(failed(format!("move /{directory}")))?;
    }
    // What is left over takes memory but does no harm.
    let _ = fs::remove_dir_all("/modules");
    let _ = fs::remove_file("/init");
    rustix::process::chdir(ROOT).map_err(failed("enter the root"))?;
    mount_move(".", "/").map_err(failed("move the root"))?;
    rustix::process::chroot(".").map_err(failed("switch the root"))?;
    rustix::process::chdir("/").map_err(failed("enter the root"))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn the_upper_root_is_like_that_of_the_image() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
        let (image, upper) = (path("image"), path("upper"));
        for name in [&image, &upper] {
            fs::create_dir(name).unwrap();
        }
        fs::set_permissions(&image, fs::Permissions::from_mode(0o1751)).unwrap();
        rustix::fs::lsetxattr(&*image, "user.x", b"y", rustix::fs::XattrFlags::empty()).unwrap();
        let time = std::time::UNIX_EPOCH + std::time::Duration::new(1_000_000_000, 7);
        fs::File::open(&image).unwrap().set_modified(time).unwrap();
        be_like(&image, &upper).unwrap();
        let found = fs::metadata(&upper).unwrap();
        assert_eq!((found.mode() & 0o7777, found.modified().unwrap()), (0o1751, time));
        assert_eq!(
            crate::platform::linux::files::xattrs(upper.as_ref()).unwrap(),
            [(b"user.x".to_vec(), b"y".to_vec())]
        );
    }
}
