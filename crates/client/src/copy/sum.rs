//! Counting and hashing what is copied.

use microvm_types::extents::Content;
use microvm_types::files::LeftOut;
use sha2::{Digest as _, Sha256};

use crate::copy::Moved;

/// Most bytes of holes that are hashed as the zeros they stand for: with more, hashing would take longer than the copy.
const HASHED_HOLES: u64 = 64 << 20;
const ZEROS: &[u8] = &[0; 64 * 1024];

/// Bytes so far and their SHA-256.
#[derive(Debug)]
pub(crate) struct Sum {
    bytes: u64,
    /// `None` once there were too many bytes of holes.
    hash: Option<Sha256>,
    /// Bytes of holes that may still be hashed.
    holes_left: u64,
}

impl Default for Sum {
    fn default() -> Self {
        Self { bytes: 0, hash: Some(Sha256::new()), holes_left: HASHED_HOLES }
    }
}

impl Sum {
    /// Adds bytes.
    pub(crate) fn add(&mut self, part: &[u8]) {
        self.bytes += part.len() as u64;
        if let Some(hash) = &mut self.hash {
            hash.update(part);
        }
    }

    /// Adds bytes or a hole.
    pub(crate) fn add_content(&mut self, piece: &Content) {
        match piece {
            Content::Data(part) => self.add(part),
            Content::Hole(count) => match self.holes_left.checked_sub(*count) {
                Some(left) => {
                    self.holes_left = left;
                    let mut left = *count;
                    while left > 0 {
                        let now = usize::try_from(left).unwrap_or(usize::MAX).min(ZEROS.len());
                        self.add(&ZEROS[..now]);
                        left -= now as u64;
                    }
                }
                None => {
                    self.hash = None;
                    self.bytes = self.bytes.saturating_add(*count);
                }
            },
        }
    }

    /// Result of the transfer; for an archive: what the guest says that it left out, if it says, and what was left out here.
    pub(crate) fn moved(self, there: Option<&LeftOut>, mut here: LeftOut) -> Moved {
        use std::fmt::Write as _;
        let hex = |hash: Sha256| {
            hash.finalize().iter().fold(String::new(), |mut text, byte| {
                // Writing to a string cannot fail.
                let _ = write!(text, "{byte:02x}");
                text
            })
        };
        here.merge(there.cloned().unwrap_or_default());
        Moved {
            bytes: self.bytes,
            sha256: self.hash.map(hex),
            left_out: here,
            left_out_is_complete: there.is_some(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn moved(sum: Sum) -> Moved {
        sum.moved(Some(&LeftOut::default()), LeftOut::default())
    }

    #[test]
    fn short_holes_are_hashed_as_zeros_and_long_ones_end_the_hash() {
        let (mut holes, mut zeros) = (Sum::default(), Sum::default());
        holes.add(b"begin");
        zeros.add(b"begin");
        holes.add_content(&Content::Hole(100_000));
        zeros.add(&vec![0; 100_000]);
        holes.add_content(&Content::Hole(0));
        let holes = moved(holes);
        assert!(holes.sha256.is_some());
        assert_eq!(holes, moved(zeros));
        let mut long = Sum::default();
        long.add_content(&Content::Hole(HASHED_HOLES - 1));
        long.add_content(&Content::Hole(2));
        long.add(b"end");
        let long = moved(long);
        assert_eq!((long.bytes, long.sha256), (HASHED_HOLES + 4, None));
    }
}
