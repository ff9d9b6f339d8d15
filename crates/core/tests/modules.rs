//! Modules of this crate use those of groups above theirs in `lib.rs`, and no others.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// The group of each module, by the blank lines between them.
fn groups(lib: &str) -> BTreeMap<String, usize> {
    let mut group = 0;
    let mut groups = BTreeMap::new();
    for line in lib.lines() {
        if let Some(module) = line.strip_prefix("mod ").and_then(|rest| rest.strip_suffix(';')) {
            groups.insert(module.to_owned(), group);
        } else if line.is_empty() {
            group += 1;
        }
    }
    groups
}

fn files(below: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(below).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// Modules named behind `crate::`.
fn used(text: &str) -> impl Iterator<Item = &str> {
    text.split("crate::").skip(1).map(|rest| {
        let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(rest.len());
        &rest[..end]
    })
}

#[test]
fn modules_use_only_those_above_them() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let groups = groups(&fs::read_to_string(root.join("lib.rs")).unwrap());
    assert!(groups.len() > 15, "{groups:?}");
    let mut all = Vec::new();
    files(&root, &mut all);
    let (mut arrows, mut wrong) = (0, Vec::new());
    for file in all {
        let path = file.strip_prefix(&root).unwrap();
        let first = path.components().next().unwrap().as_os_str().to_str().unwrap();
        let module = first.trim_end_matches(".rs");
        let Some(own) = groups.get(module) else {
            assert_eq!(module, "lib");
            continue;
        };
        let text = fs::read_to_string(&file).unwrap();
        // `use crate::{…}` would hide what is used.
        assert!(!text.contains("crate::{"), "{} uses several modules in one line", path.display());
        for other in used(&text).filter(|other| *other != module) {
            arrows += 1;
            match groups.get(other) {
                Some(group) if group < own => {}
                _ => wrong.push(format!("{} uses {other}", path.display())),
            }
        }
    }
    assert!(arrows > 100, "only {arrows} arrows");
    assert!(wrong.is_empty(), "{wrong:#?}");
}
