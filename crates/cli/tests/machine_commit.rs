//! What happens to a guest while its changes are read: it is frozen then, and writes again whatever becomes of the reading.
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "tests fail by panicking and say why they skip")]

mod support;

use std::path::Path;
use std::process::{Child, Stdio};

use support::{Home, signal, text, until};

/// Bytes of all files below a directory.
fn bytes_below(path: &Path) -> u64 {
    let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
    let size = |entry: std::fs::DirEntry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() => bytes_below(&entry.path()),
        // It has gone meanwhile.
        other => other.map_or(0, |metadata| metadata.len()),
    };
    entries.map(size).sum()
}

/// Begins a commit of `dev`, and returns when its changes are being read.
fn reading(home: &Home) -> Child {
    let work = home.root().join("tmp");
    let before = bytes_below(&work);
    let mut commit = home.command(&["commit", "dev", "committed"]);
    let commit = commit.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    until("the changes are read", 60, || bytes_below(&work) > before + (2 << 20));
    commit
}

/// A guest in which writes are done.
fn writes(home: &Home, vm: &str) {
    let script = "echo after > /root/after && sync && rm /root/after && echo written";
    assert_eq!(home.must(&["exec", "--timeout", "60s", vm, "--", "sh", "-c", script]), "written\n");
}

#[test]
fn a_guest_writes_again_whatever_becomes_of_its_commit() {
    let Some(home) = Home::open() else { return };
    home.must(&["create", "--name", "dev"]);
    home.must(&["exec", "dev", "--", "sh", "-c", "head -c 300M /dev/urandom > /root/large"]);

    // Whoever asked for it goes away.
    let mut commit = reading(&home);
    signal("KILL", commit.id().try_into().unwrap());
    commit.wait().unwrap();
    writes(&home, "dev");

    // A fork meanwhile is of the frozen guest, and is thawed in the child.
    let commit = reading(&home);
    home.must(&["fork", "dev", "--name", "child"]);
    writes(&home, "child");
    let ended = commit.wait_with_output().unwrap();
    assert!(ended.status.success(), "the commit of the parent: {}", text(&ended.stderr));
    writes(&home, "dev");
    home.must(&["image", "rm", "committed"]);

    // It goes to disk meanwhile.
    let commit = reading(&home);
    let hibernated = home.run(&["hibernate", "dev"]);
    let ended = commit.wait_with_output().unwrap();
    // Either came first.
    assert!(hibernated.status.success(), "{}", text(&hibernated.stderr));
    let made = ended.status.success();
    assert!(made || text(&ended.stderr).contains("error"), "{}", text(&ended.stderr));
    writes(&home, "dev");

    // The server dies.
    let mut commit = reading(&home);
    home.kill_server();
    assert!(!commit.wait().unwrap().success());
    writes(&home, "dev");

    // The VM goes.
    let commit = reading(&home);
    home.must(&["rm", "--force", "dev"]);
    let ended = commit.wait_with_output().unwrap();
    assert!(!ended.status.success());
    assert!(text(&ended.stderr).contains("error"), "{}", text(&ended.stderr));

    let names = home.json(&["image", "ls"]).to_string();
    assert_eq!(names.contains("\"committed\""), made, "{names}");
    home.must(&["rm", "--all", "--force"]);
}
