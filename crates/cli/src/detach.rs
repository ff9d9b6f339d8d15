//! Keys that detach from a process.

use std::str::FromStr;

/// The keys that docker has.
pub(crate) const DEFAULT_KEYS: &str = "ctrl-p,ctrl-q";

/// A sequence of keys that detaches from a terminal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DetachKeys(Vec<u8>);

impl FromStr for DetachKeys {
    type Err = String;

    /// Reads `ctrl-p,ctrl-q`, or single characters separated by commas.
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is no sequence of keys: write for example ctrl-p,ctrl-q or ctrl-]");
        let key = |key: &str| match key.strip_prefix("ctrl-").map(str::as_bytes) {
            Some([letter @ (b'a'..=b'z' | b'@' | b'[' | b'\\' | b']' | b'^' | b'_')]) => {
                Ok(letter.to_ascii_uppercase() & 0x1f)
            }
            None => match key.as_bytes() {
                [byte] if byte.is_ascii() && !byte.is_ascii_control() => Ok(*byte),
                _ => Err(wrong()),
            },
            Some(_) => Err(wrong()),
        };
        text.split(',').map(key).collect::<Result<_, _>>().map(Self)
    }
}

impl Default for DetachKeys {
    fn default() -> Self {
        // Ctrl-P, Ctrl-Q.
        Self(vec![0x10, 0x11])
    }
}

/// Input on its way to a process, in which the keys are looked for.
#[derive(Debug)]
pub(crate) struct Detector {
    keys: Vec<u8>,
    /// Keys of the sequence that have come; they are held back until it is clear that it is not the sequence.
    held: usize,
}

impl Detector {
    pub(crate) fn new(keys: DetachKeys) -> Self {
        Self { keys: keys.0, held: 0 }
    }

    /// Bytes for the process, and true if the keys were pressed; bytes after them are dropped.
    pub(crate) fn pass(&mut self, input: &[u8]) -> (Vec<u8>, bool) {
        let mut passed = Vec::with_capacity(input.len());
        for byte in input {
            // What is held back may end with a shorter beginning of the sequence.
            while self.keys[self.held] != *byte && self.held > 0 {
                let kept =
                    (0..self.held).rev().find(|kept| self.keys[..self.held].ends_with(&self.keys[..*kept]));
                let kept = kept.unwrap_or(0);
                passed.extend_from_slice(&self.keys[..self.held - kept]);
                self.held = kept;
            }
            if self.keys[self.held] == *byte {
                self.held += 1;
                if self.held == self.keys.len() {
                    return (passed, true);
                }
            } else {
                passed.push(*byte);
            }
        }
        (passed, false)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn keys(text: &str) -> Detector {
        Detector::new(text.parse().unwrap())
    }

    #[test]
    fn keys_are_found_also_in_parts() {
        let mut detector = keys(DEFAULT_KEYS);
        assert_eq!(detector.pass(b"ls\x10"), (b"ls".to_vec(), false));
        assert_eq!(detector.pass(b"\x10"), (b"\x10".to_vec(), false), "the second may begin the sequence");
        assert_eq!(detector.pass(b"\x11rest"), (Vec::new(), true));
        assert_eq!(keys("a,b,a,c").pass(b"ababac"), (b"ab".to_vec(), true));
        assert_eq!("ctrl-p,ctrl-q".parse(), Ok(DetachKeys::default()));
        assert_eq!("ctrl-]".parse(), Ok(DetachKeys(vec![0x1d])));
        for wrong in ["", "ctrl-", "ctrl-pq", "ab", "a,", "é", "ctrl-é"] {
            assert!(wrong.parse::<DetachKeys>().is_err(), "{wrong}");
        }
    }

    proptest! {
        /// Nothing is lost or added where the keys are not pressed.
        #[test]
        fn input_passes_whole(parts: Vec<Vec<u8>>, length in 1..4usize) {
            let sequence = &b"\x10\x10\x11"[..length];
            let mut detector = Detector::new(DetachKeys(sequence.to_vec()));
            let (mut passed, mut given) = (Vec::new(), Vec::new());
            for part in &parts {
                let (out, detached) = detector.pass(part);
                given.extend_from_slice(part);
                passed.extend(out);
                if detached {
                    prop_assert!(given.windows(length).any(|window| window == sequence));
                    return Ok(());
                }
            }
            prop_assert!(!given.windows(length).any(|window| window == sequence));
            passed.extend_from_slice(&sequence[..detector.held]);
            prop_assert_eq!(passed, given);
        }
    }
}
