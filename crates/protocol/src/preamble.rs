//! The mark at the start of every session.

/// Sent by each side before its first frame. A receiver that finds it drops whatever came before, a half frame of an
/// older session included. It holds no byte of [`crate::frame::MAGIC`] and is not valid UTF-8, so it can stand in no
/// header and no text; senders keep it out of bulk payloads by splitting them (see [`split_point`]).
pub const PREAMBLE: [u8; 32] = [
    0xff, 0xfe, 0xc3, 0x91, 0xe7, 0xf1, 0xb8, 0xd5, 0xa2, 0xf9, 0x8c, 0xdb, 0xee, 0x97, 0xc0, 0xb3, //
    0xf4, 0x89, 0xd0, 0xaf, 0xe1, 0x9a, 0xfb, 0xc6, 0x84, 0xbd, 0xf6, 0xd9, 0x8e, 0xa7, 0xfe, 0xff,
];

/// Where to cut a payload so that the preamble does not appear in it: in the middle of its first occurrence.
#[must_use]
pub fn split_point(payload: &[u8]) -> Option<usize> {
    memchr::memmem::find(payload, &PREAMBLE).map(|at| at + PREAMBLE.len() / 2)
}

/// Where the first whole preamble in `bytes` ends.
#[must_use]
pub fn find_end(bytes: &[u8]) -> Option<usize> {
    memchr::memmem::find(bytes, &PREAMBLE).map(|at| at + PREAMBLE.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cannot_be_part_of_a_header_or_a_text() {
        assert!(!PREAMBLE.iter().any(|byte| crate::frame::MAGIC.contains(byte)));
        let bytes = PREAMBLE.to_vec();
        assert!(String::from_utf8(bytes).is_err());
    }

    #[test]
    fn is_cut_out_of_payloads() {
        let mut data = vec![7u8; 100];
        data.extend_from_slice(&PREAMBLE);
        let at = split_point(&data).expect("it is there");
        assert_eq!(split_point(&data[..at]), None);
        assert_eq!(split_point(&data[at..]), None);
    }
}
