//! The program in a temporary home: what it prints, where, and how it ends. Needs no hypervisor and starts no server.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::process::{Command, Output, Stdio};

struct Home(tempfile::TempDir);

impl Home {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn run(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_microvm"));
        command.args(arguments).env_clear().env("HOME", self.0.path()).stdin(Stdio::null());
        command.env("MICROVM_ROOT", self.0.path().join("root")).output().unwrap()
    }
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

#[test]
fn help_is_data_and_names_every_command() {
    let output = Home::new().run(&["--help"]);
    assert!(output.status.success());
    assert!(output.stderr.is_empty());
    let help = text(&output.stdout);
    for command in [
        "run",
        "create",
        "exec",
        "cp",
        "ls",
        "inspect",
        "ps",
        "logs",
        "pause",
        "resume",
        "start",
        "stop",
        "rm",
        "resize",
        "image",
        "kernel",
        "template",
        "doctor",
        "verify",
        "serve",
        "completions",
    ] {
        assert!(help.contains(&format!("\n  {command} ")), "{command} is missing");
    }
}

#[test]
fn every_command_has_a_manual_page() {
    let home = Home::new();
    let folder = home.0.path().join("share/man1");
    let output = home.run(&["man", folder.to_str().unwrap()]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let page = |name: &str| std::fs::read_to_string(folder.join(name)).unwrap();
    assert!(page("microvm.1").contains("microvm\\-run(1)"), "{}", page("microvm.1"));
    for name in ["microvm-run.1", "microvm-image-pull.1", "microvm-snapshot-create.1"] {
        assert!(page(name).contains(".SH SYNOPSIS"), "{}", page(name));
    }
}

#[test]
fn a_wrong_command_line_is_told_on_standard_error() {
    for (wrong, code) in [
        (&["nonsense"][..], 2),
        (&["create", "--memory", "-1"], 2),
        (&["create", "--name", "a b"], 2),
        (&["run"], 125),
        (&["-o", "json", "exec"], 125),
        (&["--root", "run", "ls", "--no-such-option"], 2),
    ] {
        let output = Home::new().run(wrong);
        assert_eq!(output.status.code(), Some(code), "{wrong:?}");
        assert!(output.stdout.is_empty(), "{wrong:?}");
        assert!(text(&output.stderr).starts_with("error: "), "{wrong:?}");
    }
}

#[test]
fn completions_are_printed_without_a_server() {
    let home = Home::new();
    for shell in ["bash", "zsh", "fish"] {
        let output = home.run(&["completions", shell]);
        assert!(output.status.success());
        assert!(text(&output.stdout).contains("microvm"));
    }
    assert!(!home.0.path().join("root").exists(), "nothing is made on the way");
}

#[test]
fn a_setting_that_is_no_text_is_refused_by_name() {
    let home = Home::new();
    let run = |arguments: &[&str], name: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_microvm"));
        command
            .args(arguments)
            .env_clear()
            .env("HOME", home.0.path())
            .env("MICROVM_ROOT", home.0.path().join("root"));
        command.env(name, OsStr::from_bytes(b"/srv/\xff")).stdin(Stdio::null()).output().unwrap()
    };
    let of_the_server = [
        "MICROVM_COMMAND_TIME",
        "MICROVM_COMMAND_SIZE",
        "MICROVM_UPLOAD_LIMIT",
        "MICROVM_UPLOAD_ROOT",
        "MICROVM_WAITING_VMMS",
        "MICROVM_PROVE_SNAPSHOTS",
        "MICROVM_SNAPSHOTS_PER_VM",
        "MICROVM_SNAPSHOT_AGE",
        "MICROVM_DISK_RESERVE",
        "MICROVM_DISK_LIMIT",
        "MICROVM_QEMU",
        "MICROVM_WRITE_TRACKING",
        "MICROVM_ACCELERATOR",
        "MICROVM_AGENT",
        "MICROVM_VCPUS_PER_VM",
        "MICROVM_MEMORY_PER_VM",
        "MICROVM_DISK_PER_VM",
        "MICROVM_VM_LIMIT",
        "MICROVM_MEMORY_LIMIT",
    ];
    let asked = of_the_server.map(|name| (&["serve"][..], name)).into_iter();
    for (arguments, name) in asked.chain([
        (&["ls"][..], "MICROVM_TIME_ZONE"),
        (&["ls"], "MICROVM_HOST"),
        (&["logout", "registry.example"], "DOCKER_CONFIG"),
        (&["run", "-e", "WORD", "true"], "WORD"),
    ]) {
        let output = run(arguments, name);
        let said = text(&output.stderr);
        assert!(!output.status.success(), "{name}: {said}");
        assert!(said.contains(&format!("environment variable {name} is not UTF-8")), "{name}: {said}");
    }
}

#[test]
fn a_zone_that_does_not_exist_is_refused_in_both_forms() {
    let home = Home::new();
    let run = |format: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_microvm"));
        command.args(["--output", format, "ls"]).env_clear().env("MICROVM_TIME_ZONE", "Mars/Olympus");
        command.env("MICROVM_ROOT", home.0.path()).stdin(Stdio::null()).output().unwrap()
    };
    let output = run("table");
    assert_eq!(output.status.code(), Some(101));
    insta::assert_snapshot!(text(&output.stderr), @"error: MICROVM_TIME_ZONE: `Mars/Olympus` is not a time zone: write one of the IANA database, for example America/New_York");
    let output = run("json");
    assert_eq!(output.status.code(), Some(101));
    let problem: serde_json::Value = serde_json::from_slice(&output.stderr).unwrap();
    assert_eq!(problem["code"], "time_zone_unknown");
}

#[test]
fn a_root_that_cannot_be_made_says_what_to_do() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_microvm"));
    let output = command.args(["--root", "/dev/null/x", "ls"]).env_clear().output().unwrap();
    assert!(output.stdout.is_empty());
    assert!(output.status.code().is_some_and(|code| code >= 100), "{output:?}");
    assert!(text(&output.stderr).starts_with("error: "), "{}", text(&output.stderr));
}

#[test]
fn a_server_in_the_background_keeps_nothing_of_its_starters() {
    let home = Home::new();
    // The shell holds a lock on number 9, which the command it starts inherits, and the server after it.
    let script = "exec 9>\"$MICROVM_ROOT.lock\" && flock 9 && \"$0\" ls";
    let mut command = Command::new("bash");
    command.args(["-c", script, env!("CARGO_BIN_EXE_microvm")]).stdin(Stdio::null());
    let root = home.0.path().join("root");
    // Nothing is started with the agent; it only has to be there.
    let output = command.env("MICROVM_ROOT", &root).env("MICROVM_AGENT", "/bin/true").output().unwrap();
    let log = std::fs::read_to_string(root.join("server.log")).unwrap_or_default();
    let serving = log.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let pid = serving.filter_map(|line| line["fields"]["pid"].as_u64()).next_back();
    let Some(pid) = pid else {
        eprintln!("SKIPPED: no server starts on this host: {}", text(&output.stderr));
        return;
    };
    let lock = std::fs::File::open(home.0.path().join("root.lock")).unwrap();
    let is_free = lock.try_lock().is_ok();
    let ended = Command::new("kill").arg(pid.to_string()).status().unwrap();
    assert!(ended.success(), "the server was gone already");
    assert!(is_free, "the server holds its starter's lock");
}
