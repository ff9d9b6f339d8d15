//! The port of a guest stays in parts that one can hold in mind.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::path::Path;

/// Most methods of one part.
const MOST: usize = 8;

#[test]
fn no_part_of_the_guest_has_more_than_eight_methods() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/guest");
    let mut parts = Vec::new();
    for file in std::fs::read_dir(folder).unwrap() {
        let text = std::fs::read_to_string(file.unwrap().path()).unwrap();
        for part in text.split("\npub trait ").skip(1) {
            let (name, body) = part.split_once(':').unwrap();
            let body = &body[..body.find("\n}").unwrap()];
            let methods = body.lines().filter(|line| {
                let line = line.strip_prefix("    ").unwrap_or_default();
                line.starts_with("fn ") || line.starts_with("async fn ")
            });
            parts.push((methods.count(), name.to_owned()));
        }
    }
    assert!(parts.iter().filter(|(_, name)| name.starts_with("Guest")).count() >= 8, "{parts:?}");
    let large: Vec<_> = parts.iter().filter(|(methods, _)| *methods > MOST).collect();
    assert!(large.is_empty(), "{large:?}");
}
