//! Files that VMs and snapshots share, held against what their manifests name.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use serde_json::Value;

use super::names;

/// Layers and memory files that no manifest names. What a snapshot has materialised counts as named.
pub(crate) fn unnamed(root: &Path) -> Vec<String> {
    let mut named = names(&root.join("snapshots"));
    for (directory, manifest) in [("vms", "disk.json"), ("snapshots", "manifest.json")] {
        for id in names(&root.join(directory)) {
            let manifest = fs::read(root.join(directory).join(id).join(manifest)).unwrap_or_default();
            texts(&serde_json::from_slice(&manifest).unwrap_or_default(), &mut named);
        }
    }
    let mut unnamed = Vec::new();
    for directory in ["layers", "memory"] {
        for name in names(&root.join(directory)) {
            let id = name.split('.').next().unwrap_or_default();
            let everybodys = name.starts_with("zero-") || ["boot-id", ".lock"].contains(&name.as_str());
            if !everybodys && !named.contains(id) && !named.contains(&name) {
                unnamed.push(format!("{directory}/{name}"));
            }
        }
    }
    unnamed
}

/// Every text in a value.
fn texts(value: &Value, found: &mut BTreeSet<String>) {
    match value {
        Value::String(text) => drop(found.insert(text.clone())),
        Value::Array(values) => values.iter().for_each(|value| texts(value, found)),
        Value::Object(fields) => fields.values().for_each(|value| texts(value, found)),
        _ => {}
    }
}
