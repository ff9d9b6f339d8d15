//! Shared folders: 9P over virtio, one device and one export each.

use microvm_ports::LaunchError;
use microvm_ports::hypervisor::MachineShare;

/// Longest tag that QEMU's virtio-9p takes (MAX_TAG_LEN of hw/9pfs/virtio-9p.h, its final NUL included).
const TAG_MAX: usize = 31;

/// `-fsdev` and `-device` for a folder that the VMM knows as `path`.
///
/// - `security_model=none`: what the guest makes is what it looks like on the host, so that both can work on one tree. The
///   mapped models would show the host's own symbolic links as files and leave the host files that nobody else can read.
///   What this model cannot keep from the host (set-user-id bits, devices, pipes, sockets) the cage does.
/// - `multidevs=remap`: two file systems below one folder do not get each other's inode numbers.
pub(crate) fn arguments(share: &MachineShare, path: &str) -> Result<(String, String), LaunchError> {
    let tag = &share.tag;
    if tag.is_empty() || tag.len() > TAG_MAX || !tag.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
        return Err(LaunchError::Spec(format!("`{tag}` cannot be the tag of a shared folder")));
    }
    let read_only = if share.read_only { "on" } else { "off" };
    let path = escape(path);
    Ok((
        format!("local,id={tag},path={path},security_model=none,readonly={read_only},multidevs=remap"),
        format!("virtio-9p-device,fsdev={tag},mount_tag={tag}"),
    ))
}

/// QEMU ends a value at a comma, and takes two for one.
fn escape(value: &str) -> String {
    value.replace(',', ",,")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_stays_one_value() {
        let share = MachineShare { source: "/x".into(), tag: "share0".into(), read_only: false };
        let (export, device) = arguments(&share, "/a,readonly=off,b=c").unwrap();
        assert_eq!(
            export,
            "local,id=share0,path=/a,,readonly=off,,b=c,security_model=none,readonly=off,multidevs=remap"
        );
        assert_eq!(device, "virtio-9p-device,fsdev=share0,mount_tag=share0");
    }

    #[test]
    fn odd_tags_are_refused() {
        for tag in ["", "a,b", "a=b", "share 0", &"a".repeat(32)] {
            let share = MachineShare { source: "/x".into(), tag: tag.into(), read_only: true };
            assert!(arguments(&share, "/a").is_err(), "{tag}");
        }
    }
}
