//! The mark at the beginning of each session.

use crate::frame::HEADER_LENGTH;

/// Sent by each side before its first frame. A receiver that finds it drops everything before it, half a frame of an older
/// session included. It holds no byte of [`crate::frame::MAGIC`] and is not valid UTF-8, so it can stand in no
/// header and no text; senders keep it out of bulk payloads by splitting them (see [`split_point`]).
pub const PREAMBLE: [u8; 32] = [
    0xff, 0xfe, 0xc3, 0x91, 0xe7, 0xf1, 0xb8, 0xd5, 0xa2, 0xf9, 0x8c, 0xdb, 0xee, 0x97, 0xc0, 0xb3, //
    0xf4, 0x89, 0xd0, 0xaf, 0xe1, 0x9a, 0xfb, 0xc6, 0x84, 0xbd, 0xf6, 0xd9, 0x8e, 0xa7, 0xfe, 0xff,
];

/// Bytes of a header before its check word, which is the only part of a header that can hold bytes of the preamble: the
/// length before it ends in a zero byte.
const BEFORE_CHECK: usize = HEADER_LENGTH - 4;

/// Offset at which to cut a payload so that the preamble appears neither in it nor across the end of its header: in the
/// middle of its first occurrence. `None`: nothing to cut.
///
/// A check word that happens to be the beginning of the preamble would otherwise let the payload complete it, and a
/// receiver on a stream without boundaries would take a file for a new host.
#[must_use]
pub fn split_point(payload: &[u8]) -> Option<usize> {
    let completes = |in_header: usize| payload.starts_with(&PREAMBLE[in_header..]);
    if (1..=HEADER_LENGTH - BEFORE_CHECK).any(completes) {
        return Some(PREAMBLE.len() / 4);
    }
    memchr::memmem::find(payload, &PREAMBLE).map(|at| at + PREAMBLE.len() / 2)
}

/// Offset behind the first preamble in the bytes of one incomplete frame, from the frame's beginning; `None`: none is
/// there yet. A whole preamble there comes from a new host that began while the old one was in the middle of the frame.
#[must_use]
pub fn find_in_frame(frame: &[u8]) -> Option<usize> {
    let rest = frame.get(BEFORE_CHECK..)?;
    find_end(rest).map(|end| BEFORE_CHECK + end)
}

/// Offset behind the first whole preamble in `bytes`.
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

    #[test]
    fn is_not_completed_by_a_payload_behind_its_header() {
        for in_header in 1..=4 {
            let payload = [&PREAMBLE[in_header..], &[7; 40]].concat();
            let at = split_point(&payload).expect("the check word could be its beginning");
            let (first, second) = payload.split_at(at);
            assert_eq!((split_point(first), split_point(second)), (None, None));
            // Whatever the check words are, no window over header and payload is the preamble.
            for part in [first, second] {
                let mut frame =
                    crate::Frame::new(crate::FrameKind::Data, 1, part.to_vec().into()).header().to_vec();
                frame[BEFORE_CHECK..]
                    .copy_from_slice(&[&[0; 4], &PREAMBLE[..in_header]].concat()[in_header..]);
                frame.extend_from_slice(part);
                assert_eq!(find_in_frame(&frame), None);
            }
        }
        assert_eq!(split_point(&PREAMBLE[5..]), None);
    }

    #[test]
    fn is_found_in_half_a_frame() {
        let whole =
            [&crate::Frame::new(crate::FrameKind::Data, 1, vec![7; 100].into()).header()[..], &[7; 100]]
                .concat();
        for cut in BEFORE_CHECK..whole.len() {
            let bytes = [&whole[..cut], &PREAMBLE, b"then frames"].concat();
            assert_eq!(find_in_frame(&bytes), Some(cut + PREAMBLE.len()));
        }
        assert_eq!(find_in_frame(&whole), None);
        assert_eq!(find_in_frame(&whole[..3]), None);
    }
}
