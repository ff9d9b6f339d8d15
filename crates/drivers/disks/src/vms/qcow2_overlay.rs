//! Writes an empty qcow2 overlay: five small parts, no need to start `qemu-img`.

use super::qcow2::MAGIC;

/// 64 KiB, QEMU's default.
const CLUSTER_BITS: u32 = 16;
const CLUSTER: u64 = 1 << CLUSTER_BITS;
/// Bytes of the disk that one entry of the L1 table stands for: 512 MiB.
const PER_L1_ENTRY: u64 = CLUSTER * (CLUSTER / 8);
/// Type of the header extension that names the format of the backing file.
const BACKING_FORMAT: u32 = 0xe279_2aca;
const HEADER: usize = 104;

/// The bytes of an overlay of `size` bytes over a raw file. Everything not written yet is read from there.
///
/// Clusters: header, table of reference counts, one block of them (enough for the first 2 GiB of the file; QEMU
/// adds more), then the L1 table.
pub(crate) fn encode(size: u64, backing: &str) -> Vec<u8> {
    let l1_entries = size.div_ceil(PER_L1_ENTRY).max(1);
    let clusters = 3 + (l1_entries * 8).div_ceil(CLUSTER);
    let mut bytes = vec![0; usize::try_from(clusters * CLUSTER).expect("a few clusters fit in memory")];
    let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
    // After the header: one extension of 8 + 8 bytes, and 8 zero bytes that end the list.
    let name_at = HEADER + 16 + 8;
    put(0, &MAGIC.to_be_bytes());
    put(4, &3u32.to_be_bytes());
    put(8, &(name_at as u64).to_be_bytes());
    put(16, &u32::try_from(backing.len()).unwrap_or(u32::MAX).to_be_bytes());
    put(20, &CLUSTER_BITS.to_be_bytes());
    put(24, &size.to_be_bytes());
    put(36, &u32::try_from(l1_entries).unwrap_or(u32::MAX).to_be_bytes());
    put(40, &(3 * CLUSTER).to_be_bytes());
    put(48, &CLUSTER.to_be_bytes());
    put(56, &1u32.to_be_bytes());
    // 16-bit reference counts, written when they change: no lazy counts, so a killed VMM leaves nothing to repair.
    put(96, &4u32.to_be_bytes());
    put(100, &104u32.to_be_bytes());
    put(HEADER, &BACKING_FORMAT.to_be_bytes());
    put(HEADER + 4, &3u32.to_be_bytes());
    put(HEADER + 8, b"raw");
    put(name_at, backing.as_bytes());
    #[allow(clippy::cast_possible_truncation, reason = "a constant of 64 KiB")]
    let cluster = CLUSTER as usize;
    put(cluster, &(2 * CLUSTER).to_be_bytes());
    for index in 0..usize::try_from(clusters).unwrap_or(0) {
        put(2 * cluster + 2 * index, &1u16.to_be_bytes());
    }
    bytes
}
