//! Ctrl-C during each command leaves nothing behind.
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "tests fail by panicking and say why they skip")]

mod support;

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use support::{Home, signal, until};

/// Starts a command, presses Ctrl-C after a time, and gives how it ended.
fn interrupt(home: &Home, arguments: &[&str], after_ms: u64, times: u32) -> ExitStatus {
    let mut child = home.command(arguments).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    for _ in 0..times {
        // Not for an event: people press it at any moment.
        std::thread::sleep(Duration::from_millis(after_ms));
        signal("INT", i32::try_from(child.id()).unwrap());
    }
    child.wait().unwrap()
}

fn expect_empty(home: &Home) {
    until("all VMs are gone", 30, || home.states().is_empty() && home.ids().is_empty());
    home.expect_nothing_left(&BTreeSet::new());
}

#[test]
fn during_run_and_create() {
    let Some(home) = Home::open() else { return };
    assert!(home.states().is_empty());
    for after_ms in [5, 50, 150, 300, 600, 1_000] {
        let status = interrupt(&home, &["run", "--", "sleep", "30"], after_ms, 1);
        assert!(!status.success());
        expect_empty(&home);
        let status = interrupt(&home, &["create", "--name", "dev"], after_ms, 1);
        if status.success() {
            // It was quicker than we.
            home.must(&["rm", "dev"]);
        }
        expect_empty(&home);
    }
}

#[test]
fn during_exec_and_cp() {
    let Some(home) = Home::open() else { return };
    home.must(&["create", "--name", "dev"]);
    // The command gets it, and ends by it.
    let status = interrupt(&home, &["exec", "dev", "--", "sleep", "100"], 1_000, 1);
    assert_eq!(status.code(), Some(130));
    // One that does not listen is killed the second time.
    let deaf = ["exec", "dev", "--", "sh", "-c", "trap '' INT; sleep 100; sleep 100"];
    let status = interrupt(&home, &deaf, 1_000, 2);
    assert_eq!(status.code(), Some(130));
    let running =
        || home.must(&["exec", "dev", "--", "sh", "-c", "grep -l '^sleep' /proc/[0-9]*/comm | wc -l"]);
    until("no command is left", 20, || running().trim() == "0");

    let big = home.root().join("big");
    let noise = fs::File::open("/dev/urandom").unwrap();
    std::io::copy(&mut std::io::Read::take(noise, 300 << 20), &mut fs::File::create(&big).unwrap()).unwrap();
    let big = big.to_str().unwrap();
    let status = interrupt(&home, &["cp", big, "dev:/root/big"], 400, 1);
    assert_eq!(status.code(), Some(130), "it was too quick for this test");
    until("no part is left in the guest", 20, || {
        home.must(&["exec", "dev", "--", "ls", "-A", "/root"])
            .lines()
            .all(|name| !name.contains("big") && !name.contains("microvm"))
    });
    home.must(&["cp", big, "dev:/root/big"]);
    let target = home.root().join("target");
    fs::create_dir(&target).unwrap();
    let status = interrupt(&home, &["cp", "dev:/root/big", target.join("big").to_str().unwrap()], 400, 1);
    assert_eq!(status.code(), Some(130), "it was too quick for this test");
    assert!(support::names(&target).is_empty(), "{:?}", support::names(&target));
    home.must(&["rm", "dev"]);
    expect_empty(&home);
}

/// Starts a command, waits for its first line, sends a signal, and gives what it printed since and its exit code.
fn signalled(home: &Home, arguments: &[&str], name: &str) -> (String, Option<i32>) {
    let mut child = home.command(arguments).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut output = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    output.read_line(&mut line).unwrap();
    assert_eq!(line, "ready\n");
    signal(name, i32::try_from(child.id()).unwrap());
    let mut rest = String::new();
    output.read_to_string(&mut rest).unwrap();
    (rest, child.wait().unwrap().code())
}

/// A terminal that is closed, and whoever ends this program politely, end the command; and it has time for that.
#[test]
fn the_command_gets_the_signal_and_time() {
    let Some(home) = Home::open() else { return };
    for (name, number) in [("HUP", 1), ("TERM", 15), ("QUIT", 3)] {
        let script = format!("trap 'sleep 1; echo bye; exit 7' {name}; echo ready; sleep 100 & wait");
        let run = ["run", "--", "bash", "-c", &script];
        assert_eq!(signalled(&home, &run, name), ("bye\n".to_owned(), Some(7)), "{name}");
        expect_empty(&home);
        let plain = ["run", "--", "bash", "-c", "echo ready; exec sleep 100"];
        assert_eq!(signalled(&home, &plain, name), (String::new(), Some(128 + number)), "{name}");
        expect_empty(&home);
    }
    // One that does not listen is killed when its time is up.
    let deaf = ["run", "--", "bash", "-c", "trap '' HUP TERM; echo ready; sleep 100; sleep 100"];
    assert_eq!(signalled(&home, &deaf, "HUP"), (String::new(), Some(129)));
    expect_empty(&home);
}

/// Looking at a process's output takes nothing from whoever runs it.
#[test]
fn logs_disturb_nobody() {
    let Some(home) = Home::open() else { return };
    home.must(&["create", "--name", "dev", "--idle", "4s"]);
    let script = "echo one; echo two >&2; read line; echo $line";
    let mut command = home.command(&["exec", "-i", "dev", "--", "bash", "-c", script]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut output = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    output.read_line(&mut line).unwrap();
    let list = home.json(&["ps", "dev"]);
    let id = list["processes"][0]["id"].as_str().unwrap_or_else(|| panic!("{list}")).to_owned();
    // Without --follow it ends by itself, and neither output is the other.
    for _ in 0..2 {
        let shown = home.run(&["logs", "dev", &id]);
        assert_eq!(
            (support::text(&shown.stdout), support::text(&shown.stderr)),
            ("one\n".into(), "two\n".into())
        );
    }
    let follow = home.command(&["logs", "dev", &id, "--follow"]).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"three\n").unwrap();
    line.clear();
    output.read_to_string(&mut line).unwrap();
    assert_eq!((line.as_str(), child.wait().unwrap().code()), ("three\n", Some(0)), "its reader goes on");
    assert_eq!(support::text(&follow.wait_with_output().unwrap().stdout), "one\nthree\n");
    // What was started to go on by itself keeps its VM from being idle, until it ends.
    home.must(&["exec", "-d", "dev", "--", "sleep", "12"]);
    std::thread::sleep(Duration::from_secs(9));
    assert_eq!(home.states(), [("dev".to_owned(), "running".to_owned())]);
    until("the VM is stopped when its work is done", 20, || home.states()[0].1 == "stopped");
    home.must(&["rm", "dev"]);
}

#[test]
fn during_image_build_and_import() {
    let Some(home) = Home::open() else { return };
    let before = home.json(&["image", "ls"]);
    let recipe = home.root().join("recipe.yaml");
    fs::write(&recipe, "name: slow\nfrom: debian-python\ncommands: [\"sleep 100\"]\n").unwrap();
    for after_ms in [300, 3_000] {
        let status = interrupt(&home, &["image", "build", "-f", recipe.to_str().unwrap()], after_ms, 1);
        assert!(!status.success());
        until("its VM is gone", 30, || home.states().is_empty() && home.ids().is_empty());
    }
    let folder = home.root().join("folder");
    fs::create_dir(&folder).unwrap();
    for number in 0..20_000 {
        fs::write(folder.join(number.to_string()), "x").unwrap();
    }
    let import = ["image", "import", "--name", "half", folder.to_str().unwrap()];
    let status = interrupt(&home, &import, 100, 1);
    assert!(!status.success(), "it was too quick for this test");
    until("its work is gone", 30, || {
        support::names(&home.root().join("tmp")).iter().all(|name| name == ".gate")
    });
    assert_eq!(home.json(&["image", "ls"]), before);
    home.expect_nothing_left(&BTreeSet::new());
}
