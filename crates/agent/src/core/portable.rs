//! The core names nothing of an operating system, so that another one needs no change to it.

use std::fs;
use std::path::{Path, PathBuf};

/// Names by which a file of the core would depend on one system.
const FORBIDDEN: [&str; 14] = [
    "libc",
    "rustix",
    "windows_sys",
    "crate::platform",
    "super::platform::linux",
    "std::os::",
    "tokio::io::unix",
    "tokio::signal",
    "UnixListener",
    "UnixStream",
    "::system(",
    "cfg(target_os",
    "cfg(unix",
    "unsafe",
];
/// Places in a file system that are known to one system only.
const PLACES: [&str; 6] = ["\"/proc", "\"/sys", "\"/dev", "\"/etc", "\"/bin", "\"C:"];

fn files(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else if path.file_name().is_some_and(|name| name != "portable.rs") {
            found.push(path);
        }
    }
    found
}

#[test]
fn the_core_names_no_operating_system() {
    let core = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/core");
    let files = files(&core);
    assert!(files.len() > 15, "the core was not found");
    let mut wrong = Vec::new();
    for path in files {
        let text = fs::read_to_string(&path).unwrap();
        let code = text.lines().enumerate().filter(|(_, line)| !line.trim_start().starts_with("//"));
        for (number, line) in code {
            for name in FORBIDDEN.iter().chain(&PLACES).filter(|name| line.contains(**name)) {
                wrong.push(format!("{}:{}: {name}", path.display(), number + 1));
            }
        }
    }
    assert!(wrong.is_empty(), "the core depends on one operating system:\n{}", wrong.join("\n"));
}
