//! One line of this repository changes the phase of a VM.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::fs;
use std::path::{Path, PathBuf};

fn sources(below: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(below).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs")
            && path.components().any(|part| part.as_os_str() == "src")
        {
            found.push(path);
        }
    }
}

#[test]
fn only_the_table_changes_a_phase() {
    let crates = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let mut files = Vec::new();
    sources(crates, &mut files);
    assert!(files.len() > 300, "only {} files", files.len());
    let mut changes = Vec::new();
    for file in files {
        let text = fs::read_to_string(&file).unwrap();
        for (number, line) in text.lines().enumerate() {
            let assigns =
                line.split(".phase = ").count() > 1 || line.contains("mem::replace(&mut self.phase");
            if assigns {
                changes.push(format!("{}:{}: {}", file.display(), number + 1, line.trim()));
            }
        }
    }
    let [only] = &changes[..] else { panic!("{changes:#?}") };
    assert!(only.contains("types/src/life.rs") && only.ends_with("self.phase = phase;"), "{only}");
    let life = fs::read_to_string(crates.join("types/src/life.rs")).unwrap();
    let apply = life.split("pub fn apply(").nth(1).unwrap().split("\n    }\n").next().unwrap();
    assert!(apply.contains("next(self.phase, event)?") && apply.contains("self.phase = phase;"), "{apply}");
}
