//! From bytes to frames.

use bytes::{Buf, Bytes, BytesMut};

use crate::checksum::checksum;
use crate::frame::{FRAME_VERSION, Frame, FrameKind, HEADER_LENGTH, MAGIC};
use crate::preamble::PREAMBLE;

/// Why bytes are not frames. After one of these the session is over: there is no way to find the next frame.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// A header does not begin with the magic bytes.
    #[error("a frame begins with {0:02x?} instead of the magic bytes")]
    Magic([u8; 2]),
    /// A version of the frame format that is not known here.
    #[error("frame format version {0} is not known")]
    Version(u8),
    /// A kind that is not known here.
    #[error("frame kind {0} is not known")]
    Kind(u8),
    /// A payload longer or shorter than its kind allows.
    #[error("a frame of kind {kind:?} claims {length} bytes of payload")]
    Length {
        /// Kind of the frame.
        kind: FrameKind,
        /// Length it claims.
        length: u32,
    },
    /// The check word does not fit.
    #[error("a frame of kind {kind:?} on stream {stream} is damaged (check word)")]
    Checksum {
        /// Kind of the frame.
        kind: FrameKind,
        /// Its stream.
        stream: u32,
    },
}

/// An incremental decoder: bytes in by any portions, frames out. It reserves room only for a payload whose length was
/// found to be allowed.
#[derive(Debug, Default)]
pub struct Decoder {
    buffer: BytesMut,
}

/// Room that is offered to a reader at least: several reads of a page each before the buffer moves.
const READ_ROOM: usize = 128 * 1024;

impl Decoder {
    /// An empty decoder.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends bytes.
    pub fn feed(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The buffer to read into, with room at its end; what is appended to it counts as fed.
    pub fn buffer(&mut self) -> &mut BytesMut {
        if self.buffer.capacity() - self.buffer.len() < 4096 {
            self.buffer.reserve(READ_ROOM);
        }
        &mut self.buffer
    }

    /// Forgets everything fed so far.
    pub fn clear(&mut self) {
        self.buffer.clear();
    }

    /// Bytes that wait for the rest of their frame.
    #[must_use]
    pub fn pending(&self) -> usize {
        self.buffer.len()
    }

    /// Drops the first `count` bytes.
    pub fn skip(&mut self, count: usize) {
        self.buffer.advance(count.min(self.buffer.len()));
    }

    /// Bytes that wait, for a search that is not about frames.
    #[must_use]
    pub fn peek(&self) -> &[u8] {
        &self.buffer
    }

    /// Takes a preamble that stands where a frame should begin; `true` if it was there whole.
    pub fn take_preamble(&mut self) -> bool {
        let found = self.buffer.starts_with(&PREAMBLE);
        if found {
            self.buffer.advance(PREAMBLE.len());
        }
        found
    }

    /// Returns true if the bytes may become a preamble where a frame should begin, but are not all there.
    fn begins_preamble(&self) -> bool {
        self.buffer.len() < PREAMBLE.len() && PREAMBLE.starts_with(&self.buffer)
    }

    /// The next whole frame, or `None` until more bytes come, also in the middle of a preamble: see
    /// [`Self::take_preamble`].
    ///
    /// # Errors
    /// [`DecodeError`] when the bytes are no frame. The bytes stay: only a search for a preamble makes sense then.
    pub fn next_frame(&mut self) -> Result<Option<Frame>, DecodeError> {
        let Some(header) = self.buffer.first_chunk::<HEADER_LENGTH>() else { return Ok(None) };
        if header[..2] != MAGIC {
            if self.begins_preamble() {
                return Ok(None);
            }
            return Err(DecodeError::Magic([header[0], header[1]]));
        }
        if header[2] != FRAME_VERSION {
            return Err(DecodeError::Version(header[2]));
        }
        let kind = FrameKind::from_byte(header[3]).ok_or(DecodeError::Kind(header[3]))?;
        let word =
            |at: usize| u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
        let (stream, claimed, check) = (word(4), word(8), word(12));
        let (least, most) = kind.length_range();
        let length = usize::try_from(claimed).unwrap_or(usize::MAX);
        if length < least || length > most {
            return Err(DecodeError::Length { kind, length: claimed });
        }
        if self.buffer.len() < HEADER_LENGTH + length {
            return Ok(None);
        }
        let start: [u8; 12] = *header.first_chunk().expect("a header has 16 bytes");
        if checksum(&start, &self.buffer[HEADER_LENGTH..HEADER_LENGTH + length]) != check {
            return Err(DecodeError::Checksum { kind, stream });
        }
        self.buffer.advance(HEADER_LENGTH);
        let payload = self.take(length);
        Ok(Some(Frame { kind, stream, payload }))
    }

    /// Payloads are copied unless they are most of a read buffer: what waits somewhere (and is counted by its length) must
    /// not keep a whole buffer alive. Measured before: 64 streams nobody read, each with its 1 MiB of credit, held 712 MB.
    fn take(&mut self, length: usize) -> Bytes {
        if length < READ_ROOM / 2 {
            let copy = Bytes::copy_from_slice(&self.buffer[..length]);
            self.buffer.advance(length);
            copy
        } else {
            self.buffer.split_to(length).freeze()
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frames() -> impl Strategy<Value = Vec<Frame>> {
        let frame = (1u8..=12, any::<u32>(), proptest::collection::vec(any::<u8>(), 0..6000)).prop_map(
            |(kind, stream, mut payload)| {
                let kind = FrameKind::from_byte(kind).expect("kinds are 1 to 12");
                let (least, most) = kind.length_range();
                payload.resize(payload.len().clamp(least, most), 0);
                Frame::new(kind, stream, payload.into())
            },
        );
        proptest::collection::vec(frame, 1..6)
    }

    #[test]
    fn what_waits_holds_little_more_than_its_bytes() {
        for length in [1, 4095, 4096, 20_000, 60_000, 64 * 1024] {
            let mut decoder = Decoder::new();
            let mut bytes = Vec::new();
            Frame::new(FrameKind::Data, 1, vec![7; length].into()).encode_into(&mut bytes);
            decoder.buffer().extend_from_slice(&bytes);
            let payload = decoder.next_frame().unwrap().unwrap().payload;
            // Only the owner of an allocation can have it back: nothing else shares it once the decoder is gone.
            drop(decoder);
            let held = payload.try_into_mut().unwrap().capacity();
            assert!(held <= 2 * length + 64, "{length} bytes hold {held}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn frames_survive_being_cut_anywhere(frames in frames(), cuts in proptest::collection::vec(1usize..5000, 1..40)) {
            let mut bytes = Vec::new();
            for frame in &frames {
                frame.encode_into(&mut bytes);
            }
            let mut decoder = Decoder::new();
            let (mut decoded, mut rest, mut cuts) = (Vec::new(), &bytes[..], cuts.into_iter().cycle());
            while !rest.is_empty() {
                let (now, later) = rest.split_at(cuts.next().expect("cycles").min(rest.len()));
                decoder.feed(now);
                rest = later;
                while let Some(frame) = decoder.next_frame().unwrap() {
                    decoded.push(frame);
                }
            }
            prop_assert_eq!(decoded, frames);
            prop_assert_eq!(decoder.pending(), 0);
        }

        #[test]
        fn any_flipped_bit_is_refused(frames in frames(), at in any::<prop::sample::Index>(), bit in 0u8..8) {
            let mut bytes = Vec::new();
            frames[0].encode_into(&mut bytes);
            let at = at.index(bytes.len());
            bytes[at] ^= 1 << bit;
            let mut decoder = Decoder::new();
            decoder.feed(&bytes);
            // A longer length field waits for more; then the check word must not fit either.
            if let Ok(None) = decoder.next_frame() {
                decoder.feed(&vec![0; crate::MAX_CONTROL]);
                prop_assert!(decoder.next_frame().is_err());
            }
        }

        #[test]
        fn no_bytes_make_it_panic_or_hoard(bytes in proptest::collection::vec(any::<u8>(), 0..4096)) {
            let mut decoder = Decoder::new();
            decoder.feed(&bytes);
            while let Ok(Some(_)) = decoder.next_frame() {}
        }
    }

    #[test]
    fn a_preamble_is_taken_where_a_frame_should_begin_however_it_is_cut() {
        let mut frame = Vec::new();
        Frame::new(FrameKind::Data, 1, vec![7; 20].into()).encode_into(&mut frame);
        let bytes = [&frame[..], &PREAMBLE, &frame].concat();
        for cut in 0..bytes.len() {
            let mut decoder = Decoder::new();
            let (mut frames, mut preambles) = (0, 0);
            for part in [&bytes[..cut], &bytes[cut..]] {
                decoder.feed(part);
                loop {
                    if decoder.take_preamble() {
                        assert_eq!(frames, 1);
                        preambles += 1;
                    } else if decoder.next_frame().unwrap().is_some() {
                        frames += 1;
                    } else {
                        break;
                    }
                }
            }
            assert_eq!((frames, preambles, decoder.pending()), (2, 1, 0), "cut at {cut}");
        }
    }

    #[test]
    fn absurd_lengths_are_refused_from_the_header_alone() {
        let mut header = Frame::new(FrameKind::Data, 1, Bytes::new()).header();
        header[8..12].copy_from_slice(&u32::MAX.to_le_bytes());
        let mut decoder = Decoder::new();
        decoder.feed(&header);
        assert_eq!(
            decoder.next_frame(),
            Err(DecodeError::Length { kind: FrameKind::Data, length: u32::MAX })
        );
    }
}
