//! Files of a guest.

pub use microvm_types::files::FileList;
use microvm_types::files::{FileStat, LeftOut, WatchEvent};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::problem::Problem;
use crate::query::{Mode, Owner};

/// Hash of a file, computed in the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FileHash {
    /// SHA-256 in lower-case hexadecimal.
    pub sha256: String,
}

/// Most bytes of a file that base64 in JSON carries.
pub const ENCODED_MAX: usize = 10 << 20;

/// A file, or a part of one, as base64.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct EncodedContent {
    /// Its bytes in base64 (RFC 4648, section 4).
    pub content: String,
    /// How many they are.
    pub bytes: u64,
    /// SHA-256 of these bytes in lower-case hexadecimal.
    pub sha256: String,
    /// The whole file.
    pub stat: FileStat,
}

/// A file to be written from base64.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct WriteEncoded {
    /// Absolute path in the guest.
    pub path: String,
    /// Its bytes in base64 (RFC 4648, section 4), with padding and without line breaks; at most 10 MiB when decoded.
    pub content: String,
    /// SHA-256 of these bytes in hexadecimal; absent: not compared.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
    /// Permission bits, octal; absent: 644, or those of the file that is replaced.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<Mode>,
    /// Who gets it, as `USER[:GROUP]`; empty: the user whom commands run as; absent: the owner of the file that is replaced, or
    /// root.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<Owner>,
    /// Make missing directories above it.
    #[serde(default)]
    pub parents: bool,
}

/// One line of a watch: a change, or why there will be no more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(untagged)]
pub enum WatchLine {
    /// Something changed.
    Change(WatchEvent),
    /// It failed; nothing comes after.
    Failed {
        /// The failure.
        problem: Problem,
    },
}

/// Most bytes of a [`LeftOut`] in a trailer: HTTP libraries bound all trailers together, hyper at 16 KiB.
const LEFT_OUT_BYTES: usize = 8 * 1024;

/// What was left out as one line of JSON in visible ASCII, so that it fits into an HTTP trailer: at most 8 KiB, with fewer
/// entries where that is too little for all. The count is always the whole one.
#[must_use]
pub fn left_out_text(left_out: &LeftOut) -> String {
    let mut shown = left_out.clone();
    loop {
        let text = ascii_json(&shown);
        if text.len() <= LEFT_OUT_BYTES || shown.entries.pop().is_none() {
            return text;
        }
    }
}

/// A value as one line of JSON in visible ASCII, as headers and trailers of HTTP need it: everything else is escaped.
#[must_use]
pub fn ascii_json(value: &impl Serialize) -> String {
    use std::fmt::Write as _;
    // Plain data: it cannot fail.
    let json = serde_json::to_string(value).unwrap_or_default();
    let mut text = String::with_capacity(json.len());
    for c in json.chars() {
        if (' '..='~').contains(&c) {
            text.push(c);
            continue;
        }
        for unit in c.encode_utf16(&mut [0; 2]) {
            // Writing to a string cannot fail.
            let _ = write!(text, "\\u{unit:04x}");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_was_left_out_fits_a_trailer(paths in prop::collection::vec(any::<String>(), 0..25), long: bool) {
            let mut left_out = LeftOut::default();
            for path in &paths {
                left_out.add(if long { path.repeat(50) } else { path.clone() }, "it is a socket");
            }
            let text = left_out_text(&left_out);
            prop_assert!(text.len() <= LEFT_OUT_BYTES && text.bytes().all(|byte| (b' '..=b'~').contains(&byte)));
            let read: LeftOut = serde_json::from_str(&text).unwrap();
            prop_assert_eq!(read.count, left_out.count);
            prop_assert_eq!(&read.entries[..], &left_out.entries[..read.entries.len()]);
            prop_assert!(long || read.entries.len() == left_out.entries.len() || text.len() > LEFT_OUT_BYTES / 2);
        }
    }
}
