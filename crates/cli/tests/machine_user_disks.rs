//! A writable disk of the user's in forks, snapshots, rollback and hibernation: children keep their moment, the file gets
//! everything in the end.
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "tests fail by panicking and say why they skip")]

mod support;

use std::path::Path;
use std::process::Command;

use serde_json::json;
use support::{Home, names, text};

/// Finds the disk by its serial number.
const DEVICE: &str = "$(dirname $(grep -lx data /sys/block/vd*/serial))";

fn exec(home: &Home, vm: &str, script: &str) -> String {
    home.must(&["exec", vm, "--", "sh", "-ec", script]).trim_end().to_owned()
}

/// Content of a file as it is on the disk, not in the guest's cache.
fn reads(home: &Home, vm: &str, file: &str) -> String {
    exec(home, vm, &format!("sync; echo 3 > /proc/sys/vm/drop_caches; cat /mnt/{file} 2>&1 || true"))
}

fn host(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {}{}",
        text(&output.stdout),
        text(&output.stderr)
    );
    text(&output.stdout).trim_end().to_owned()
}

/// The user's file, with an ext4 on it, and a template that has it.
fn furnish(home: &Home) -> String {
    let image = home.root().join("user.img");
    let image = image.to_str().unwrap().to_owned();
    host("truncate", &["-s", "96M", &image]);
    host("mke2fs", &["-q", "-t", "ext4", &image]);
    let templates = home.root().join("templates");
    std::fs::create_dir_all(&templates).unwrap();
    let template = json!({
        "name": "disk", "image": "debian-python", "memory_mib": 256,
        "extra_disks": [{ "name": "data", "path": image }],
    });
    std::fs::write(templates.join("disk.json"), template.to_string()).unwrap();
    image
}

fn layers(root: &Path) -> usize {
    names(&root.join("layers")).len()
}

#[test]
fn a_disk_of_the_users_is_branched_and_gets_everything_back() {
    let Some(home) = Home::open() else { return };
    let image = furnish(&home);
    home.must(&["create", "--name", "dev", "--template", "disk"]);
    exec(
        &home,
        "dev",
        &format!(
            "mount -t ext4 /dev/$(basename {DEVICE}) /mnt; echo before > /mnt/file; head -c 9000000 /dev/urandom > /mnt/noise"
        ),
    );
    let noise = exec(&home, "dev", "md5sum < /mnt/noise");

    home.must(&["fork", "dev", "--count", "2", "--name", "try-{n}"]);
    exec(&home, "dev", "echo later > /mnt/file; rm /mnt/noise; sync");
    for child in ["try-1", "try-2"] {
        exec(&home, child, &format!("echo {child} > /mnt/own"));
        assert_eq!(reads(&home, child, "file"), "before");
        assert_eq!(exec(&home, child, "md5sum < /mnt/noise"), noise, "{child}");
    }
    assert_eq!(
        (reads(&home, "try-1", "own"), reads(&home, "try-2", "own")),
        ("try-1".into(), "try-2".into())
    );
    assert_eq!(reads(&home, "dev", "file"), "later");

    // Saved, changed, put back; also by another server.
    home.must(&["snapshot", "create", "dev", "--name", "ready"]);
    exec(&home, "dev", "echo undone > /mnt/file; sync");
    home.end_server();
    home.must(&["rollback", "dev", "ready"]);
    assert_eq!(reads(&home, "dev", "file"), "later");
    home.must(&["restore", "ready", "--name", "copy"]);
    assert_eq!(reads(&home, "copy", "file"), "later");
    assert!(home.must(&["snapshot", "verify", "ready"]).contains("every byte"));
    let export = home.root().join("export");
    let (_, problem) = home.must_fail(&["snapshot", "export", "ready", export.to_str().unwrap()]);
    assert!(problem["detail"].as_str().unwrap().contains("`data`"), "{problem}");

    // A child is branched like its parent, and sleeps with its disk.
    home.must(&["fork", "try-1", "--name", "deep"]);
    home.must(&["rm", "try-1"]);
    assert_eq!(reads(&home, "deep", "own"), "try-1");
    exec(&home, "dev", "echo asleep > /mnt/file");
    home.must(&["hibernate", "dev"]);
    home.must(&["start", "dev"]);
    assert_eq!(reads(&home, "dev", "file"), "asleep");
    exec(&home, "deep", "umount /mnt");
    home.must(&["stop", "deep"]);
    home.must(&["start", "deep"]);
    exec(&home, "deep", &format!("mount -t ext4 /dev/$(basename {DEVICE}) /mnt"));
    assert_eq!(
        (reads(&home, "deep", "own"), reads(&home, "deep", "file")),
        ("try-1".into(), "before".into())
    );

    // The file is whole as soon as its VM is stopped, and the VM goes on on it.
    exec(&home, "dev", "echo done > /mnt/file; umount /mnt");
    home.must(&["stop", "dev"]);
    host("e2fsck", &["-fn", &image]);
    assert_eq!(host("debugfs", &["-R", "cat /file", &image]), "done");
    assert!(!host("debugfs", &["-R", "ls /", &image]).contains("own"), "a child wrote to the user's file");
    home.must(&["start", "dev"]);
    exec(&home, "dev", &format!("mount -t ext4 /dev/$(basename {DEVICE}) /mnt"));
    assert_eq!(reads(&home, "dev", "file"), "done");
    // Removed while it runs, branched once more: what it wrote is in the file.
    home.must(&["fork", "dev", "--name", "last"]);
    exec(&home, "dev", "echo removed > /mnt/file; umount /mnt");
    home.must(&["rm", "--force", "dev"]);
    host("e2fsck", &["-fn", &image]);
    assert_eq!(host("debugfs", &["-R", "cat /file", &image]), "removed");
    assert_eq!(reads(&home, "last", "file"), "done");
    let ids = home.ids();
    home.must(&["rm", "--all"]);
    home.must(&["snapshot", "rm", "ready"]);
    support::until("no layer is left", 20, || layers(home.root()) == 0);
    home.expect_nothing_left(&ids);
}

#[test]
fn what_was_written_survives_the_death_of_everything() {
    let Some(home) = Home::open() else { return };
    let image = furnish(&home);
    home.must(&["create", "--name", "dev", "--template", "disk"]);
    exec(&home, "dev", &format!("mount -t ext4 /dev/$(basename {DEVICE}) /mnt"));
    home.must(&["fork", "dev", "--name", "child"]);
    exec(&home, "dev", "echo kept > /mnt/file; sync");
    let id = home.json(&["inspect", "dev"])["id"].as_str().unwrap().to_owned();
    let (vmm, _) = home.processes_of(&id).unwrap();
    home.kill_server();
    support::signal("KILL", vmm);
    support::wait_for_end(vmm);
    support::until("the VM is seen to have failed", 60, || home.state("dev").0 == "failed");
    // Somebody has the file open: nothing is lost, and what to do is said.
    let mut lock = Command::new("flock").args(["--exclusive", &image, "sleep", "600"]).spawn().unwrap();
    support::until("the file is locked", 10, || {
        !Command::new("flock").args(["--nonblock", "--shared", &image, "true"]).status().unwrap().success()
    });
    let (_, problem) = home.must_fail(&["start", "dev"]);
    assert_eq!(problem["code"], "disk_not_written_back", "{problem}");
    let (_, problem) = home.must_fail(&["rm", "--force", "dev"]);
    assert_eq!(problem["code"], "disk_not_written_back", "{problem}");
    // The lock is its child's as well.
    let sleeping = text(&std::fs::read(format!("/proc/{0}/task/{0}/children", lock.id())).unwrap());
    support::signal("KILL", sleeping.trim().parse().unwrap());
    lock.wait().unwrap();
    home.must(&["start", "dev"]);
    exec(&home, "dev", &format!("mount -t ext4 /dev/$(basename {DEVICE}) /mnt"));
    assert_eq!(reads(&home, "dev", "file"), "kept");
    assert!(reads(&home, "child", "file").contains("No such file"));
    let ids = home.ids();
    home.must(&["rm", "--force", "--all"]);
    assert_eq!(host("debugfs", &["-R", "cat /file", &image]), "kept");
    home.expect_nothing_left(&ids);
}
