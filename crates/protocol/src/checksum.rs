//! The check word of a frame.

use xxhash_rust::xxh64::xxh64;

/// Check word over the first 12 bytes of a header and the payload: the low half of XXH64 of the payload, seeded with
/// the header. Chosen over CRC-32C because it is ten times as fast in an emulated guest; the numbers are in
/// `docs/design/0001-frame-checksum.md`. It guards against accidents, not against a hostile peer, who may compute it.
#[must_use]
pub fn checksum(header: &[u8; 12], payload: &[u8]) -> u32 {
    let (first, rest) = header.split_at(8);
    let first = u64::from_le_bytes(first.try_into().expect("split at 8"));
    let length = u32::from_le_bytes(rest.try_into().expect("4 of 12 bytes remain"));
    // An odd multiplier spreads the header's fields, so that changes in two of them do not cancel out.
    let seed = first.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ u64::from(length);
    let hash = xxh64(payload, seed);
    #[expect(
        clippy::cast_possible_truncation,
        reason = "both halves of the hash are folded into 32 bits on purpose"
    )]
    let word = (hash ^ (hash >> 32)) as u32;
    word
}
