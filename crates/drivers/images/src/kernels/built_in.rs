//! Drivers that a kernel of the user's must have built in: it is started with an initial file system that holds no modules.

/// Name under which each driver registers itself, a text of its own in the kernel's data, and the option that builds it in.
const NEEDED: [(&str, &str); 6] = [
    ("virtio-mmio", "CONFIG_VIRTIO_MMIO"),
    ("virtio_blk", "CONFIG_VIRTIO_BLK"),
    ("virtio_console", "CONFIG_VIRTIO_CONSOLE"),
    ("erofs", "CONFIG_EROFS_FS"),
    ("ext4", "CONFIG_EXT4_FS"),
    ("overlay", "CONFIG_OVERLAY_FS"),
];

/// Options of the drivers that an uncompressed kernel does not have built in; none if it may have all.
///
/// The linker keeps a text that is the end of another one only inside of that (`overlay` in `arp_overlay`). So a driver is
/// surely missing only where no text ends with its name; those whose name is no text of its own are then named with it.
pub(super) fn missing(vmlinux: &[u8]) -> Vec<&'static str> {
    let mut unsure: Vec<(&[u8], &'static str, bool)> =
        NEEDED.iter().map(|(name, option)| (name.as_bytes(), *option, true)).collect();
    // One pass over all texts: a kernel has 50 MB.
    for text in vmlinux.split(|byte| *byte == 0) {
        unsure.retain_mut(|(name, _, sure)| {
            *sure &= !text.ends_with(name);
            *name != text
        });
        if unsure.is_empty() {
            break;
        }
    }
    if unsure.iter().all(|(_, _, sure)| !sure) {
        return Vec::new();
    }
    unsure.into_iter().map(|(_, option, _)| option).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drivers_are_told_by_their_names() {
        let all = b"\x7fELF\0virtio-mmio\0x\0virtio_blk\0virtio_console\0erofs\0ext4\0overlay\0";
        assert!(missing(all).is_empty());
        // Texts that the linker merged.
        let merged = b"\x7fELF\0of-virtio-mmio\0virtio_blk\0virtio_console\0not erofs\0ext4\0arp_overlay\0";
        assert!(missing(merged).is_empty());
        // As in a distribution's kernel, where the words are parts of others.
        let modular = b"\x7fELF\0virtio_blk.ko\0ext4\0fdt_overlay\0use overlay\0virtio-mmio@x\0";
        assert_eq!(
            missing(modular),
            [
                "CONFIG_VIRTIO_MMIO",
                "CONFIG_VIRTIO_BLK",
                "CONFIG_VIRTIO_CONSOLE",
                "CONFIG_EROFS_FS",
                "CONFIG_OVERLAY_FS"
            ]
        );
    }
}
