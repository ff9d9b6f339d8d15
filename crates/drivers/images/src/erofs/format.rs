//! Numbers of the on-disk format (kernel `fs/erofs/erofs_fs.h`), and the little-endian writers for them.

/// Size of a block.
pub(super) const BLOCK: u64 = 4096;
/// Offset of the super block.
pub(super) const SUPER_OFFSET: usize = 1024;
/// Length of the super block.
pub(super) const SUPER_LENGTH: usize = 128;
/// `EROFS_SUPER_MAGIC_V1`.
pub(super) const MAGIC: u32 = 0xE0F5_E1E2;
/// `EROFS_FEATURE_COMPAT_SB_CHKSUM` and `EROFS_FEATURE_COMPAT_MTIME`.
pub(super) const COMPATIBLE: u32 = 0x1 | 0x2;
/// `EROFS_FEATURE_INCOMPAT_CHUNKED_FILE`, set only if a file has holes.
pub(super) const INCOMPATIBLE_CHUNKED: u32 = 0x4;
/// Length of an extended inode.
pub(super) const INODE: u64 = 64;
/// Inode numbers count slots of this size.
pub(super) const SLOT: u64 = 32;
/// Address of a hole.
pub(super) const NULL_ADDRESS: u32 = u32::MAX;
/// Size of a chunk of a file with holes, as a power of two: 64 KiB.
pub(super) const CHUNK_BITS: u32 = 16;
/// The same in bytes.
pub(super) const CHUNK: u64 = 1 << CHUNK_BITS;
/// Length of a directory entry without its name.
pub(super) const DIRENT: usize = 12;

/// Layout of the data of an inode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum DataLayout {
    /// All in blocks.
    Plain = 0,
    /// Whole blocks, and the rest behind the inode.
    Inline = 2,
    /// Chunks that may be holes; their addresses behind the inode.
    Chunked = 4,
}

/// Device number as the kernel packs it (`new_encode_dev`).
pub(super) const fn device(major: u32, minor: u32) -> u32 {
    (minor & 0xff) | ((major & 0xfff) << 8) | ((minor & 0xf_ff00) << 12)
}

/// CRC-32C as EROFS uses it: seed all ones, not inverted at the end.
pub(super) fn crc32c(bytes: &[u8]) -> u32 {
    bytes.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(
            crc ^ u32::from(*byte),
            |crc, _| if crc & 1 == 1 { (crc >> 1) ^ 0x82F6_3B78 } else { crc >> 1 },
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crc_matches_the_check_value_of_the_catalogue() {
        assert_eq!(!crc32c(b"123456789"), 0xE306_9283);
    }

    #[test]
    fn devices_are_packed_as_the_kernel_does() {
        assert_eq!(device(5, 1), 0x501);
        assert_eq!(device(259, 0x12345), 0x1231_0345);
    }
}
