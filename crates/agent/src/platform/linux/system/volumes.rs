//! Named volumes: disks of the machine, mounted where the guest wants them.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::time::{Duration, Instant};

use microvm_protocol::messages::Volume;
use rustix::io::Errno;
use rustix::mount::{MountFlags, mount};

use crate::platform::linux::boot::find_disk;

/// Time that a disk is waited for. All disks are there before the channel opens; a slow host may be late with the news.
const DISK_DEADLINE: Duration = Duration::from_secs(20);
/// The folder that a check of the file system puts lost files into. On a new volume it would be in the way of programs that
/// want an empty directory; the check makes it again.
const LOST_AND_FOUND: &str = "lost+found";

/// Mounts all of them, one after the other.
pub(in crate::platform::linux) async fn mount_all(volumes: Vec<Volume>) -> Result<(), String> {
    // A journal may have to be replayed: whoever waits for it must not be the thread that serves the channel.
    let mounted = tokio::task::spawn_blocking(move || volumes.iter().try_for_each(mount_one)).await;
    mounted.map_err(|error| error.to_string())?
}

fn mount_one(volume: &Volume) -> Result<(), String> {
    let target = volume.target.as_str();
    if !target.starts_with('/') || volume.serial.is_empty() {
        return Err(format!("`{target}` cannot be the place of a volume"));
    }
    let disk =
        find_disk(&volume.serial, Instant::now() + DISK_DEADLINE).map_err(|error| error.to_string())?;
    fs::create_dir_all(target).map_err(|error| format!("make {target}: {error}"))?;
    let of_image = fs::metadata(target).map_err(|error| format!("examine {target}: {error}"))?;
    let flags = if volume.read_only { MountFlags::NODEV | MountFlags::RDONLY } else { MountFlags::NODEV };
    mount(&*disk, target, "ext4", flags, c"").map_err(|error| match error {
        Errno::ROFS => format!(
            "mount the volume on {target} read-only: the VM that wrote to it last was killed, and its journal has to be replayed; \
             attach it to a VM that may write to it once"
        ),
        _ => format!("mount the volume on {target}: {error}"),
    })?;
    if volume.read_only {
        return Ok(());
    }
    begin(Path::new(target), &of_image)
        .map_err(|error| format!("prepare the new volume on {target}: {error}"))
}

/// Gives a volume that nobody has written to the owner and the mode that its place has in the image, so that programs which
/// are not root can use it.
fn begin(target: &Path, of_image: &fs::Metadata) -> std::io::Result<()> {
    let mut entries = fs::read_dir(target)?;
    let is_new = match (entries.next().transpose()?, entries.next()) {
        (Some(only), None) => only.file_name() == LOST_AND_FOUND,
        _ => false,
    };
    if !is_new {
        return Ok(());
    }
    fs::remove_dir(target.join(LOST_AND_FOUND))?;
    std::os::unix::fs::chown(target, Some(of_image.uid()), Some(of_image.gid()))?;
    fs::set_permissions(target, fs::Permissions::from_mode(of_image.mode() & 0o7777))
}
