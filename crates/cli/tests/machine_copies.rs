//! Copies of what is no plain file: links, FIFOs, devices, sockets; what is left out, and what is told of it.
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "tests fail by panicking and say why they skip")]

mod support;

use std::fs;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, symlink};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Stdio;

use microvm_types::files::FileTime;
use serde_json::Value;
use support::{Home, text};

/// A copy that is not complete: its exit code is 1, and its JSON says why.
fn incomplete(home: &Home, arguments: &[&str]) -> Value {
    let output = home.run(&[&["--output", "json"], arguments].concat());
    assert_eq!(output.status.code(), Some(1), "{arguments:?}: {}", text(&output.stderr));
    assert!(text(&output.stderr).contains("left out"), "{}", text(&output.stderr));
    let moved: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(moved["left_out_is_complete"], true, "{moved}");
    moved["left_out"].clone()
}

fn shell(home: &Home, script: &str) -> String {
    home.must(&["exec", "dev", "--", "sh", "-c", script])
}

#[test]
fn links_devices_and_sockets_are_copied_or_told() {
    let Some(home) = Home::open() else { return };
    home.must(&["create", "--name", "dev"]);
    links_stay_links(&home);
    special_files_go_in(&home);
    what_is_left_out_is_told(&home);
    linked_directories_are_filled(&home);
    times_are_kept(&home);
    owners_are_named(&home);
    home.must(&["rm", "dev"]);
}

fn links_stay_links(home: &Home) {
    shell(
        home,
        "mkdir -p /root/venv/bin && ln -s /usr/bin/python3 /root/venv/bin/ && ln -s ../../etc /root/venv/up",
    );
    shell(home, "echo a > /root/venv/f && ln -s f /root/venv/near");
    let out = home.root().join("venv");
    let moved = home.json(&["cp", "dev:/root/venv", out.to_str().unwrap()]);
    assert_eq!(moved["left_out"]["count"], 0, "{moved}");
    for (name, leads_to) in [("bin/python3", "/usr/bin/python3"), ("up", "../../etc"), ("near", "f")] {
        assert_eq!(fs::read_link(out.join(name)).unwrap(), Path::new(leads_to));
    }
    let closed = home.root().join("closed");
    let left_out = incomplete(home, &["cp", "--links", "skip", "dev:/root/venv", closed.to_str().unwrap()]);
    assert_eq!(left_out["count"], 2, "{left_out}");
    assert!(closed.join("near").is_symlink() && !closed.join("up").is_symlink());
    // The guest replaces what was a link by a directory: the link of the earlier copy is not followed.
    let outside = home.root().join("outside");
    fs::create_dir(&outside).unwrap();
    shell(home, "mkdir -p /root/tree/trap && echo x > /root/tree/trap/x");
    let tree = home.root().join("tree");
    fs::create_dir(&tree).unwrap();
    symlink(&outside, tree.join("trap")).unwrap();
    let (_, problem) = home.must_fail(&["cp", "dev:/root/tree", home.root().to_str().unwrap()]);
    assert!(problem["detail"].as_str().unwrap().contains("trap"), "{problem}");
    let (exit, problem) = home.must_fail(&["cp", "dev:/root/tree/trap", tree.to_str().unwrap()]);
    assert_eq!((exit, &problem["code"]), (103, &Value::from("target_is_link")), "{problem}");
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 0, "a link was followed");
}

fn special_files_go_in(home: &Home) {
    let here = home.root().join("special");
    fs::create_dir(&here).unwrap();
    let made = std::process::Command::new("mkfifo").args(["-m", "640"]).arg(here.join("a-pipe")).status();
    assert!(made.unwrap().success());
    fs::write(here.join("z"), "last").unwrap();
    let mut tar = std::process::Command::new("tar")
        .args(["-C", home.root().to_str().unwrap(), "-cf", "-", "special"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut push = home.command(&["cp", "-", "dev:/root/from-tar"]);
    assert!(push.stdin(tar.stdout.take().unwrap()).status().unwrap().success());
    assert!(tar.wait().unwrap().success());
    assert_eq!(shell(home, "cd /root/from-tar/special && stat -c %F%a a-pipe && cat z"), "fifo640\nlast");
    let socket = UnixListener::bind(here.join("socket")).unwrap();
    let left_out = incomplete(home, &["cp", here.to_str().unwrap(), "dev:/root/from-directory"]);
    drop(socket);
    assert!(left_out["entries"][0]["path"].as_str().unwrap().ends_with("/special/socket"), "{left_out}");
    assert_eq!(shell(home, "cd /root/from-directory && stat -c %F%a a-pipe && cat z"), "fifo640\nlast");
}

fn what_is_left_out_is_told(home: &Home) {
    shell(
        home,
        "mkdir /root/all && cd /root/all && mkfifo pipe && mknod null c 1 3 && echo t > text && mkdir mnt",
    );
    shell(home, "mount -t tmpfs none /root/all/mnt && echo hidden > /root/all/mnt/hidden");
    shell(home, "python3 -c 'import socket; socket.socket(socket.AF_UNIX).bind(\"/root/all/socket\")'");
    let out = home.root().join("all");
    let left_out = incomplete(home, &["cp", "dev:/root/all", out.to_str().unwrap()]);
    let mut paths: Vec<_> =
        left_out["entries"].as_array().unwrap().iter().map(|entry| &entry["path"]).collect();
    paths.sort_by_key(|path| path.to_string());
    assert_eq!(paths, ["/root/all/mnt", "/root/all/socket", "all/null"], "{left_out}");
    assert!(fs::symlink_metadata(out.join("pipe")).unwrap().file_type().is_fifo());
    assert_eq!(fs::read(out.join("text")).unwrap(), b"t\n");
    for name in ["null", "socket", "mnt/hidden"] {
        assert!(fs::symlink_metadata(out.join(name)).is_err(), "{name}");
    }
}

/// `/bin` and `/lib` of every Debian are such links.
fn linked_directories_are_filled(home: &Home) {
    shell(home, "mkdir /root/real && ln -s real /root/link");
    let (directory, tool) = (home.root().join("directory"), home.root().join("tool"));
    fs::create_dir(&directory).unwrap();
    fs::write(directory.join("inner"), "i").unwrap();
    fs::write(&tool, "t").unwrap();
    home.must(&["cp", tool.to_str().unwrap(), "dev:/root/link"]);
    home.must(&["cp", directory.to_str().unwrap(), "dev:/root/link"]);
    home.must(&["cp", tool.to_str().unwrap(), "dev:/root/link/named"]);
    let found = shell(home, "test -L /root/link && cd /root/real && find . -type f | sort | tr '\\n' ' '");
    assert_eq!(found.trim(), "./directory/inner ./named ./tool");
}

fn times_are_kept(home: &Home) {
    let tree = home.root().join("timed");
    fs::create_dir_all(tree.join("deep")).unwrap();
    fs::write(tree.join("deep/file"), "x").unwrap();
    let times = ["2001-02-03 04:05:06.123456789 UTC", "1969-12-31 23:59:58.5 UTC", "2040-01-02 03:04:05 UTC"];
    let paths = [tree.join("deep/file"), tree.join("deep"), tree.clone()];
    for (path, time) in paths.iter().zip(times) {
        let touched = std::process::Command::new("touch").args(["-d", time]).arg(path).status();
        assert!(touched.unwrap().success());
    }
    let wanted = ["981173106.123456789", "-1.500000000", "2209086245.000000000"];
    let modified = |paths: &[&Path]| -> Vec<FileTime> {
        let times = paths.iter().map(|path| fs::symlink_metadata(path).unwrap());
        times.map(|found| FileTime::new(found.mtime(), found.mtime_nsec().try_into().unwrap())).collect()
    };
    let wanted: Vec<FileTime> = wanted.iter().map(|time| time.parse().unwrap()).collect();
    home.must(&["cp", tree.to_str().unwrap(), "dev:/root/timed"]);
    let file = paths[0].to_str().unwrap();
    home.must(&["cp", file, "dev:/root/alone"]);
    let script = "import os,sys\nfor p in sys.argv[1:]: print(os.lstat(p).st_mtime_ns)";
    let there = ["/root/alone", "/root/timed/deep/file", "/root/timed/deep", "/root/timed"];
    let arguments = [&["exec", "dev", "--", "python3", "-c", script], &there[..]].concat();
    let told: Vec<i128> = home.must(&arguments).lines().map(|line| line.parse().unwrap()).collect();
    let nanoseconds =
        |time: &FileTime| i128::from(time.seconds()) * 1_000_000_000 + i128::from(time.nanoseconds());
    let expected: Vec<i128> = [&wanted[..1], &wanted[..]].concat().iter().map(nanoseconds).collect();
    assert_eq!(told, expected);
    let back = home.root().join("back");
    home.must(&["cp", "dev:/root/timed", back.to_str().unwrap()]);
    assert_eq!(modified(&[&back.join("deep/file"), &back.join("deep"), &back]), wanted);
    let alone = home.root().join("alone");
    home.must(&["cp", "dev:/root/alone", alone.to_str().unwrap()]);
    assert_eq!(modified(&[&alone]), wanted[..1]);
}

fn owners_are_named(home: &Home) {
    let tree = home.root().join("owned");
    fs::create_dir_all(tree.join("deep")).unwrap();
    fs::write(tree.join("deep/file"), "x").unwrap();
    home.must(&["cp", "--chown", "daemon:4321", tree.to_str().unwrap(), "dev:/srv/a/b"]);
    home.must(&["cp", "--chown", "4242", tree.join("deep/file").to_str().unwrap(), "dev:/srv/file"]);
    home.must(&["cp", tree.to_str().unwrap(), "dev:/srv/plain"]);
    let found = shell(
        home,
        "cd /srv; stat -c %u:%g a a/b a/b/deep a/b/deep/file file plain plain/deep | tr '\\n' ' '",
    );
    assert_eq!(found.trim(), "1:4321 1:4321 1:4321 1:4321 4242:0 0:0 0:0");
    let (exit, problem) =
        home.must_fail(&["cp", "--chown", "nobody-here", tree.to_str().unwrap(), "dev:/srv/none"]);
    assert_eq!(exit, 102, "{problem}");
    assert!(problem["detail"].as_str().unwrap().contains("nobody-here"), "{problem}");
    // The command of `run` can fill its output whoever it runs as.
    let (input, output) = (tree.join("deep"), home.root().join("output"));
    let directories = ["--in", input.to_str().unwrap(), "--out", output.to_str().unwrap()];
    let command = ["-u", "daemon", "--", "sh", "-c", "cp /workspace/input/file /workspace/output/copy"];
    home.must(&[&["run"][..], &directories, &command].concat());
    assert_eq!(fs::read(output.join("copy")).unwrap(), b"x");
}

#[test]
fn the_exit_code_of_a_command_stands_above_what_happens_to_its_output() {
    let Some(home) = Home::open() else { return };
    let out = home.root().join("out");
    // What is there already and is no directory cannot be filled.
    fs::write(&out, "a file").unwrap();
    let run = |script: &str| {
        home.run(&["-o", "json", "run", "--out", out.to_str().unwrap(), "--", "sh", "-c", script])
    };
    let output = run("echo said; exit 7");
    assert_eq!(output.status.code(), Some(7), "{}", text(&output.stderr));
    assert!(text(&output.stderr).contains("the output was not copied"), "{}", text(&output.stderr));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&report["exit_code"], &report["stdout"]), (&Value::from(7), &Value::from("said\n")));
    assert!(report["output_problem"].is_string(), "{report}");
    assert_eq!(run("true").status.code(), Some(125));
    fs::remove_file(&out).unwrap();
    let output = run("mknod /workspace/output/null c 1 3; ln -s /etc/passwd /workspace/output/results.json");
    assert_eq!(output.status.code(), Some(1), "{}", text(&output.stderr));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["left_out"]["entries"][0]["path"], "output/null", "{report}");
    assert!(report["results"].is_null() && out.join("results.json").is_symlink(), "{report}");
}
