//! Folders of the host, mounted by 9P over virtio.

use std::ffi::CString;
use std::fs;

use microvm_protocol::messages::Share;
use rustix::io::Errno;
use rustix::mount::{MountFlags, mount};

/// Most bytes of one message: what the kernel's virtio transport carries, 128 pieces of a page without three of its own
/// (VIRTQUEUE_NUM and `maxsize` of net/9p/trans_virtio.c).
const MESSAGE_SIZE: usize = 125 * 4096;

/// Mounts all of them, one after the other.
pub(in crate::platform::linux) async fn mount_all(shares: Vec<Share>) -> Result<(), String> {
    // The host answers a mount: whoever waits for it must not be the thread that serves the channel.
    let mounted = tokio::task::spawn_blocking(move || shares.iter().try_for_each(mount_one)).await;
    mounted.map_err(|error| error.to_string())?
}

fn mount_one(share: &Share) -> Result<(), String> {
    let target = share.target.as_str();
    if !target.starts_with('/') || share.tag.is_empty() {
        return Err(format!("`{target}` cannot be the place of a shared folder"));
    }
    fs::create_dir_all(target).map_err(|error| format!("make {target}: {error}"))?;
    let mut flags = MountFlags::NOSUID | MountFlags::NODEV;
    // Nothing is kept in memory here, so that both sides see at once what the other does; only a file that is mapped for
    // writing needs pages of its own.
    let cache = if share.read_only { "none" } else { "mmap" };
    if share.read_only {
        flags |= MountFlags::RDONLY;
    }
    let options = format!("trans=virtio,version=9p2000.L,msize={MESSAGE_SIZE},access=any,cache={cache}");
    let options = CString::new(options).map_err(|error| error.to_string())?;
    mount(&*share.tag, target, "9p", flags, options.as_c_str()).map_err(|error| match error {
        Errno::NODEV => format!("mount a shared folder on {target}: this kernel has no 9P file system"),
        Errno::NOENT => format!("mount a shared folder on {target}: the machine does not offer it"),
        _ => format!("mount a shared folder on {target}: {error}"),
    })
}
