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

/// Lines of a file that are program: no comments, and nothing from its tests on.
fn program(text: &str) -> impl Iterator<Item = &str> {
    let lines = text.lines().map(str::trim).take_while(|line| !line.starts_with("#[cfg(test)]"));
    lines.filter(|line| !line.starts_with("//"))
}

/// Words by which a constant of one hypervisor would show. Formats of disks, accelerators and kinds of channels have names of their own, which
/// several hypervisors share.
const OF_ONE_HYPERVISOR: [&str; 7] = ["qemu", "qmp", "mmio", "q35", "pvh", "firecracker", "cloud-hypervisor"];

#[test]
fn core_and_ports_know_no_hypervisor() {
    let core = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut all = Vec::new();
    files(&core.join("src"), &mut all);
    files(&core.parent().unwrap().join("ports/src"), &mut all);
    assert!(all.len() > 100, "only {} files", all.len());
    let (mut looked_at, mut wrong) = (0, Vec::new());
    for file in all {
        for line in program(&fs::read_to_string(&file).unwrap()) {
            looked_at += 1;
            let lower = line.to_lowercase();
            if OF_ONE_HYPERVISOR.iter().any(|word| lower.contains(word)) {
                wrong.push(format!("{}: {line}", file.display()));
            }
        }
    }
    assert!(looked_at > 8_000, "only {looked_at} lines");
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// Most methods of one type, over all of its `impl` blocks.
const MOST_METHODS: usize = 25;

/// The type of an `impl` block that is its own, and not one of a trait.
fn own_type(line: &str) -> Option<&str> {
    let rest = line.strip_prefix("impl")?;
    let rest = if rest.starts_with('<') { rest.split_once("> ")?.1 } else { rest.strip_prefix(' ')? };
    let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_')?;
    (!line.contains(" for ")).then_some(&rest[..end])
}

#[test]
fn no_type_does_everything() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut all = Vec::new();
    files(&root, &mut all);
    let mut methods: BTreeMap<(String, String), usize> = BTreeMap::new();
    for file in all {
        // Types of the same name in different folders are different types.
        let folder = file.parent().unwrap().display().to_string();
        let mut own = None;
        for line in fs::read_to_string(&file).unwrap().lines() {
            if line.starts_with("impl") {
                own = own_type(line).map(str::to_owned);
            } else if line == "}" {
                own = None;
            }
            let method = line.strip_prefix("    ").is_some_and(|line| {
                !line.starts_with(' ') && (line.starts_with("fn ") || line.contains(" fn "))
            });
            if let Some(own) = own.as_ref().filter(|_| method) {
                *methods.entry((folder.clone(), own.clone())).or_default() += 1;
            }
        }
    }
    let count = |name: &str| methods.iter().find(|((_, own), _)| own == name).map_or(0, |(_, count)| *count);
    assert!(count("VmActor") > 10 && count("Journal") > 10, "{methods:#?}");
    methods.retain(|_, count| *count > MOST_METHODS);
    assert!(methods.is_empty(), "more than {MOST_METHODS} methods: {methods:#?}");
}
