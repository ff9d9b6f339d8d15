//! The fake's exported snapshots: a line, a checksum, and JSON.

use std::collections::BTreeMap;

use microvm_ports::StateParts;
use microvm_ports::snapshot::StateDescription;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::storage::saved::Memory;

const FIRST_LINE: &str = "a made-up snapshot\n";

/// Content of an exported snapshot.
#[derive(Debug, PartialEq)]
pub(crate) struct Exported {
    pub(crate) description: StateDescription,
    pub(crate) parts: StateParts,
    pub(crate) memory: Memory,
    /// Content of the disk layers, newest first.
    pub(crate) layers: Vec<Vec<u8>>,
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(value: &Value) -> Option<Vec<u8>> {
    let text = value.as_str().filter(|text| text.is_ascii() && text.len().is_multiple_of(2))?;
    (0..text.len() / 2).map(|at| u8::from_str_radix(&text[2 * at..2 * at + 2], 16).ok()).collect()
}

impl Exported {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let memory: BTreeMap<String, String> =
            self.memory.iter().map(|(number, content)| (number.to_string(), hex(content))).collect();
        let parts: BTreeMap<&str, String> =
            self.parts.iter().map(|(name, content)| (name.as_str(), hex(content))).collect();
        let layers: Vec<String> = self.layers.iter().map(|layer| hex(layer)).collect();
        let body = json!({
            "description": self.description, "parts": parts, "memory": memory, "layers": layers,
        })
        .to_string();
        format!("{FIRST_LINE}{}\n{body}", hex(&Sha256::digest(&body))).into_bytes()
    }

    /// `None` for everything that was not written by [`Exported::encode`].
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(bytes).ok()?.strip_prefix(FIRST_LINE)?;
        let (sha256, body) = text.split_once('\n')?;
        if hex(&Sha256::digest(body)) != sha256 {
            return None;
        }
        let body: Value = serde_json::from_str(body).ok()?;
        let page =
            |(number, content): (&String, &Value)| Some((number.parse().ok()?, unhex(content)?.into()));
        let part = |(name, content): (&String, &Value)| Some((name.parse().ok()?, unhex(content)?.into()));
        Some(Self {
            description: serde_json::from_value(body["description"].clone()).ok()?,
            parts: body["parts"].as_object()?.iter().map(part).collect::<Option<_>>()?,
            memory: body["memory"].as_object()?.iter().map(page).collect::<Option<_>>()?,
            layers: body["layers"].as_array()?.iter().map(unhex).collect::<Option<_>>()?,
        })
    }
}
