//! Small JSON files that find a flipped bit in themselves.
//!
//! ```text
//! {"format_version":1,"sha256":"<of version, newline and body as written>","body":{…}}
//! ```
//!
//! The file must be byte for byte what we would write, so that not even a changed blank goes unseen.

use camino::Utf8Path;
use microvm_ports::StorageError;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::error::{damaged, io_error};
use super::files::{sha256, write_new};

/// Format of everything this crate stores. Increase it when a body changes in a way older readers would misread.
const FORMAT_VERSION: u32 = 1;
/// No manifest of ours comes near; a larger file is not one.
const LENGTH_MAX: u64 = 1 << 20;

#[derive(Serialize, Deserialize)]
struct Envelope {
    format_version: u32,
    sha256: String,
    body: Box<RawValue>,
}

fn checksum(version: u32, body: &str) -> String {
    sha256(format!("{version}\n{body}").as_bytes())
}

/// The bytes of a manifest.
pub fn encode<T: Serialize>(body: &T) -> Vec<u8> {
    let body =
        serde_json::value::to_raw_value(body).expect("our own types have string keys and finite numbers");
    let sha256 = checksum(FORMAT_VERSION, body.get());
    serde_json::to_vec(&Envelope { format_version: FORMAT_VERSION, sha256, body })
        .expect("an envelope of valid JSON is valid JSON")
}

/// Reads the bytes of a manifest; the error tells what is wrong with them.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, String> {
    let envelope: Envelope =
        serde_json::from_slice(bytes).map_err(|error| format!("its manifest cannot be read: {error}"))?;
    if envelope.format_version != FORMAT_VERSION {
        return Err(format!(
            "its manifest has version {}, this program reads {FORMAT_VERSION}",
            envelope.format_version
        ));
    }
    let found = checksum(envelope.format_version, envelope.body.get());
    if found != envelope.sha256 {
        return Err(format!("its manifest should have the SHA-256 {}, but has {found}", envelope.sha256));
    }
    if serde_json::to_vec(&envelope).ok().as_deref() != Some(bytes) {
        return Err("its manifest has bytes that do not belong there".into());
    }
    serde_json::from_str(envelope.body.get())
        .map_err(|error| format!("its manifest cannot be understood: {error}"))
}

/// Writes a manifest to a new file and syncs it.
pub fn write<T: Serialize>(path: &Utf8Path, body: &T) -> Result<(), StorageError> {
    write_new(path, 0o644, &encode(body))
}

/// Reads the manifest of `what`.
pub fn read<T: DeserializeOwned>(path: &Utf8Path, what: &str) -> Result<T, StorageError> {
    let length = path.metadata().map_err(io_error("reading", path))?.len();
    if length > LENGTH_MAX {
        return Err(damaged(what, format!("its manifest has {length} bytes")));
    }
    let bytes = std::fs::read(path).map_err(io_error("reading", path))?;
    decode(&bytes).map_err(|detail| damaged(what, detail))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn round_trips_and_finds_every_flipped_bit(body in prop::collection::btree_map(".{0,8}", any::<u32>(), 0..4), bit in any::<prop::sample::Index>()) {
            let mut bytes = encode(&body);
            prop_assert_eq!(decode::<BTreeMap<String, u32>>(&bytes).unwrap(), body);
            let bit = bit.index(bytes.len() * 8);
            bytes[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(decode::<BTreeMap<String, u32>>(&bytes).is_err());
        }
    }
}
