//! Reads `architecture.toml`.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::host;

/// Sections with their keys and values.
pub(crate) type Sections = BTreeMap<String, BTreeMap<String, Value>>;

/// Reads the file.
pub(crate) fn read() -> Result<Sections> {
    let path = host::repository().join("architecture.toml");
    parse(&std::fs::read_to_string(&path).context("reading architecture.toml")?)
}

/// Takes the part of TOML that the file uses: sections, and keys with a value on one line that is also JSON. A real
/// parser would triple the time this program takes to compile.
fn parse(text: &str) -> Result<Sections> {
    let mut sections = Sections::new();
    let mut section = String::new();
    for (number, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            section = name.to_owned();
            continue;
        }
        let Some((key, value)) = line.split_once('=') else {
            bail!("architecture.toml, line {}: neither a section nor `key = value`", number + 1);
        };
        let value = serde_json::from_str(value.trim())
            .with_context(|| format!("architecture.toml, line {}: the value", number + 1))?;
        let key = key.trim().trim_matches('"').to_owned();
        sections.entry(section.clone()).or_default().insert(key, value);
    }
    Ok(sections)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sections_and_values_are_read_and_mistakes_named() {
        let sections = parse("# text\n[one]\na = [\"x\", \"y\"]\n\n[two]\n\"b/c.rs\" = 900\n").unwrap();
        assert_eq!(sections["one"]["a"], serde_json::json!(["x", "y"]));
        assert_eq!(sections["two"]["b/c.rs"], serde_json::json!(900));
        assert!(parse("nonsense").unwrap_err().to_string().contains("line 1"));
        assert!(parse("\na = b").unwrap_err().to_string().contains("line 2"));
    }
}
