//! Reads the rules of this repository: `architecture.toml`, `deny.toml`.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::host;

/// Sections with their keys and values.
pub(crate) type Sections = BTreeMap<String, BTreeMap<String, Value>>;

/// Reads `architecture.toml`.
pub(crate) fn read() -> Result<Sections> {
    read_file("architecture.toml")
}

/// Reads a file at the top of the repository.
pub(crate) fn read_file(name: &str) -> Result<Sections> {
    let path = host::repository().join(name);
    let text = std::fs::read_to_string(&path).with_context(|| format!("reading {name}"))?;
    parse(&text).with_context(|| name.to_owned())
}

/// Takes the part of TOML that the files use: sections, and keys with a value that is also JSON but for a comma before its
/// end; a list may go on over lines. A real parser would triple the time this program takes to compile.
fn parse(text: &str) -> Result<Sections> {
    let mut sections = Sections::new();
    let mut section = String::new();
    let mut lines = text.lines().enumerate();
    while let Some((number, line)) = lines.next() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            section = name.to_owned();
            continue;
        }
        let Some((key, value)) = line.split_once('=') else {
            bail!("line {}: neither a section nor `key = value`", number + 1);
        };
        let mut value = value.trim().to_owned();
        while value.starts_with('[') && !value.ends_with(']') {
            let Some((_, more)) = lines.next() else { bail!("line {}: a list without end", number + 1) };
            value.push_str(more.trim());
        }
        let value = serde_json::from_str(&value.replace(",]", "]"))
            .with_context(|| format!("line {}: the value", number + 1))?;
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
        let lists = parse("[x]\na = [\n  \"b\", \"c\",\n  \"d\",\n]\nb = 2").unwrap();
        assert_eq!(lists["x"]["a"], serde_json::json!(["b", "c", "d"]));
        assert_eq!(lists["x"]["b"], serde_json::json!(2));
        assert!(parse("a = [").unwrap_err().to_string().contains("without end"));
        assert!(parse("nonsense").unwrap_err().to_string().contains("line 1"));
        assert!(parse("\na = b").unwrap_err().to_string().contains("line 2"));
    }
}
