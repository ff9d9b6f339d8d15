//! Output of commands as JSON carries it: bytes that are no text, and what was left out, are told beside the text.

use base64::Engine as _;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Most that is kept of each output that is collected, in bytes.
pub const COLLECTED_MAX: usize = 10_000_000;

/// One output of a command while it is collected: its first [`COLLECTED_MAX`] bytes, and how many are missing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Collected {
    bytes: Vec<u8>,
    omitted: u64,
}

impl Collected {
    /// Adds what came; what is beyond [`COLLECTED_MAX`] is only counted.
    pub fn add(&mut self, bytes: &[u8]) {
        let (kept, beyond) = bytes.split_at(bytes.len().min(COLLECTED_MAX - self.bytes.len()));
        self.bytes.extend_from_slice(kept);
        self.omitted += beyond.len() as u64;
    }

    /// Counts bytes that were written and did not come.
    pub const fn miss(&mut self, bytes: u64) {
        self.omitted += bytes;
    }

    /// As text, and the bytes in base64 where they are no UTF-8. Text that is UTF-8 is not held twice.
    fn text(mut self) -> (String, Option<String>, u64) {
        // A character that the limit cut in two is left out whole: it does not make text bytes.
        if self.omitted > 0
            && let Err(error) = std::str::from_utf8(&self.bytes)
            && error.error_len().is_none()
        {
            self.omitted += (self.bytes.len() - error.valid_up_to()) as u64;
            self.bytes.truncate(error.valid_up_to());
        }
        match String::from_utf8(self.bytes) {
            Ok(text) => (text, None, self.omitted),
            Err(error) => {
                let exact = base64::engine::general_purpose::STANDARD.encode(error.as_bytes());
                (String::from_utf8_lossy(error.as_bytes()).into_owned(), Some(exact), self.omitted)
            }
        }
    }
}

/// Both outputs of a command.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Outputs {
    /// Standard output; bytes that are no UTF-8 are replaced, and `stdout_base64` has all as they are.
    pub stdout: String,
    /// Standard error; bytes that are no UTF-8 are replaced, and `stderr_base64` has all as they are.
    pub stderr: String,
    /// Standard output in base64 (RFC 4648, section 4), only where it is no UTF-8.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stdout_base64: Option<String>,
    /// Standard error in base64, only where it is no UTF-8.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stderr_base64: Option<String>,
    /// True if some output is left out; `omitted` says how much.
    #[serde(default)]
    pub truncated: bool,
    /// Output that is left out; absent: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub omitted: Option<Omitted>,
}

/// Output that was written and is not in an answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Omitted {
    /// Bytes of standard output.
    pub stdout_bytes: u64,
    /// Bytes of standard error.
    pub stderr_bytes: u64,
    /// Where they are, or how to get them, in words.
    pub rest: String,
}

impl Outputs {
    /// The collected output, as JSON carries it; `rest` says where the left-out bytes can be had.
    #[must_use]
    pub fn new(stdout: Collected, stderr: Collected, rest: &str) -> Self {
        let (stdout, stdout_base64, stdout_bytes) = stdout.text();
        let (stderr, stderr_base64, stderr_bytes) = stderr.text();
        let truncated = stdout_bytes + stderr_bytes > 0;
        let omitted = truncated.then(|| Omitted { stdout_bytes, stderr_bytes, rest: rest.to_owned() });
        Self { stdout, stderr, stdout_base64, stderr_base64, truncated, omitted }
    }
}

impl std::fmt::Display for Omitted {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (out, err) = (self.stdout_bytes, self.stderr_bytes);
        let rest = &self.rest;
        match (out, err) {
            (out, 0) => write!(formatter, "{out} bytes of standard output are left out: {rest}"),
            (0, err) => write!(formatter, "{err} bytes of standard error are left out: {rest}"),
            (out, err) => {
                write!(
                    formatter,
                    "{out} bytes of standard output and {err} of standard error are left out: {rest}"
                )
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_out_is_counted() {
        let mut output = Collected::default();
        for _ in 0..3 {
            output.add(&vec![b'x'; COLLECTED_MAX / 2]);
        }
        let outputs = Outputs::new(output, Collected::default(), "nowhere");
        assert_eq!(outputs.stdout.len(), COLLECTED_MAX);
        assert!(outputs.truncated);
        let omitted = outputs.omitted.unwrap();
        assert_eq!((omitted.stdout_bytes, omitted.stderr_bytes), (COLLECTED_MAX as u64 / 2, 0));
        assert_eq!(omitted.to_string(), "5000000 bytes of standard output are left out: nowhere");
    }

    #[test]
    fn bytes_that_are_no_text_come_as_they_are() {
        let (mut odd, mut plain) = (Collected::default(), Collected::default());
        odd.add(b"a\xff\0b");
        plain.add("naïve".as_bytes());
        let outputs = Outputs::new(odd, plain, "");
        assert_eq!((outputs.stdout.as_str(), outputs.stderr.as_str()), ("a\u{fffd}\0b", "naïve"));
        assert_eq!(outputs.stdout_base64.as_deref(), Some("Yf8AYg=="));
        assert_eq!((outputs.stderr_base64, outputs.truncated, outputs.omitted), (None, false, None));
    }

    #[test]
    fn a_character_at_the_limit_does_not_make_text_bytes() {
        let mut output = Collected::default();
        output.add(&vec![b'x'; COLLECTED_MAX - 1]);
        output.add("ï".as_bytes());
        let outputs = Outputs::new(output, Collected::default(), "");
        assert_eq!((outputs.stdout_base64, outputs.stdout.len()), (None, COLLECTED_MAX - 1));
        assert_eq!(outputs.omitted.unwrap().stdout_bytes, 2);
    }

    #[test]
    fn what_never_came_is_counted_too() {
        let mut output = Collected::default();
        output.miss(7);
        assert_eq!(Outputs::new(output, Collected::default(), "").omitted.unwrap().stdout_bytes, 7);
    }
}
