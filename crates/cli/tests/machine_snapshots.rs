//! Snapshots: what was saved comes back, damage is found, and nothing depends on the order of deletions.
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "tests fail by panicking and say why they skip")]

mod support;

use std::os::unix::fs::FileExt as _;

use support::{Home, names, until};

fn exec(home: &Home, vm: &str, script: &str) -> String {
    home.must(&["exec", vm, "--", "sh", "-c", script]).trim_end().to_owned()
}

#[test]
fn a_vm_goes_back_in_time_and_copies_go_on_from_there() {
    let Some(home) = Home::open() else { return };
    home.must(&["create", "--name", "dev"]);
    exec(&home, "dev", "echo one > /root/file; echo in-memory > /dev/shm/word");
    assert_eq!(
        home.must(&["snapshot", "create", "dev", "--name", "ready", "--description", "one thing"]),
        "ready\n"
    );
    exec(&home, "dev", "echo two > /root/file; rm /dev/shm/word");
    home.must(&["snapshot", "create", "dev", "--name", "later"]);
    let shown = home.json(&["snapshot", "inspect", "ready"]);
    assert_eq!((&shown["description"], &shown["vm_name"]), (&"one thing".into(), &"dev".into()));
    assert!(home.must(&["snapshot", "ls"]).contains("later"));

    // Copies, while the VM goes on; also by the next server.
    home.end_server();
    assert_eq!(home.must(&["restore", "ready", "--name", "copy"]), "copy\n");
    assert_eq!(exec(&home, "copy", "cat /root/file /dev/shm/word; hostname"), "one\nin-memory\ncopy");
    assert_eq!(exec(&home, "dev", "cat /root/file"), "two");
    // Back, and forth again.
    home.must(&["rollback", "dev", "ready"]);
    assert_eq!(exec(&home, "dev", "cat /root/file /dev/shm/word; hostname"), "one\nin-memory\ndev");
    home.must(&["rollback", "dev", "later"]);
    assert_eq!(exec(&home, "dev", "cat /root/file; ls /dev/shm"), "two");
    let (_, problem) = home.must_fail(&["rollback", "copy", "ready"]);
    assert_eq!(problem["remedies"][0]["action"], "restore_snapshot", "{problem}");
    // A copy of a copy, of a VM that is gone.
    home.must(&["snapshot", "create", "copy", "--name", "of-copy"]);
    home.must(&["rm", "copy"]);
    home.must(&["restore", "of-copy", "--name", "again"]);
    assert_eq!(exec(&home, "again", "cat /root/file; hostname"), "one\nagain");
    // Stopped and started again it is the same disk.
    home.must(&["stop", "again"]);
    home.must(&["start", "again"]);
    assert_eq!(exec(&home, "again", "cat /root/file"), "one");
    home.must(&["rm", "--all"]);
    for snapshot in ["of-copy", "later", "ready"] {
        home.must(&["restore", snapshot, "--name", "last"]);
        home.must(&["rm", "last"]);
        home.must(&["snapshot", "rm", "--cascade", snapshot]);
    }
    assert_eq!(home.json(&["snapshot", "ls"])["snapshots"].as_array().unwrap().len(), 0);
}

#[test]
fn a_flipped_bit_is_found_and_never_restored() {
    let Some(home) = Home::open() else { return };
    home.must(&["create", "--name", "dev"]);
    exec(&home, "dev", "head -c 3000000 /dev/urandom > /root/noise; sync");
    home.must(&["snapshot", "create", "dev", "--name", "good"]);
    assert!(home.must(&["snapshot", "verify"]).contains("good: every byte"));
    let id = home.json(&["snapshot", "inspect", "good"])["id"].as_str().unwrap().to_owned();
    home.end_server();
    let part = home.root().join("snapshots").join(&id).join("memory.pages");
    let file = std::fs::OpenOptions::new().read(true).write(true).open(&part).unwrap();
    let (at, mut byte) = (file.metadata().unwrap().len() / 2, [0]);
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 4], at).unwrap();
    drop(file);
    let output = home.run(&["snapshot", "verify", "good"]);
    let said = support::text(&output.stdout);
    assert!(!output.status.success() && said.contains("memory"), "{said}");
    let report = home.run(&["--output", "json", "snapshot", "verify", "good"]);
    let report: serde_json::Value = serde_json::from_slice(&report.stdout).unwrap();
    let damage = &report["good"]["damage"][0];
    let (first, end) = (damage["first_byte"].as_u64().unwrap(), damage["end_byte"].as_u64().unwrap());
    assert!((first..end).contains(&at), "byte {at} is not in {first}..{end}");
    assert_eq!(home.must_fail(&["restore", "good"]).1["code"], "damaged");
    // Its VM is not harmed, and can be saved again.
    exec(&home, "dev", "md5sum /root/noise");
    home.must(&["snapshot", "rm", "good"]);
    home.must(&["snapshot", "create", "dev", "--name", "good"]);
    home.must(&["restore", "good", "--name", "copy"]);
    assert_eq!(exec(&home, "copy", "md5sum < /root/noise"), exec(&home, "dev", "md5sum < /root/noise"));
    home.must(&["rm", "--all"]);
    assert!(names(&home.root().join("vms")).is_empty());
}

#[test]
fn old_snapshots_go_and_parents_stay() {
    let Some(home) = Home::open() else { return };
    home.must(&["create", "--name", "dev"]);
    // Those that nobody named make room for each other, never for named ones or at their cost.
    home.must(&["snapshot", "create", "dev", "--name", "s-12"]);
    for _ in 1..=12 {
        home.must(&["snapshot", "create", "dev"]);
    }
    let listed = home.json(&["snapshot", "ls", "dev"]);
    let kept: Vec<&str> =
        listed["snapshots"].as_array().unwrap().iter().map(|one| one["name"].as_str().unwrap()).collect();
    assert_eq!(kept.len(), 11, "{kept:?}");
    assert_eq!(kept[0], "s-12");
    let (_, problem) = home.must_fail(&["snapshot", "create", "dev", "--name", "s-12"]);
    assert_eq!(problem["code"], "snapshot_name_taken", "{problem}");
    let removed = home.must(&["snapshot", "prune", "--keep", "2"]);
    assert_eq!(removed.lines().count(), 8, "{removed}");
    assert!(!removed.contains("s-12"), "{removed}");
    let stats = home.json(&["snapshot", "stats"]);
    assert_eq!((&stats["total_snapshots"], &stats["vms_with_snapshots"]), (&3.into(), &1.into()));
    home.must(&["restore", "s-12", "--name", "copy"]);
    home.must(&["rm", "--all"]);
}

#[test]
fn a_vm_that_nobody_uses_rests_and_the_next_request_wakes_it() {
    let Some(home) = Home::open() else { return };
    home.must(&["create", "--name", "dev", "--pause-after", "1s"]);
    exec(&home, "dev", "echo in-memory > /dev/shm/word");
    home.must(&["exec", "-d", "dev", "--", "sleep", "1000"]);
    until("it stands still", 20, || home.state("dev").0 == "paused");
    assert_eq!(exec(&home, "dev", "cat /dev/shm/word"), "in-memory");
    // What somebody paused is not woken by a request.
    home.must(&["pause", "dev"]);
    assert_eq!(home.must_fail(&["exec", "dev", "--", "true"]).1["code"], "vm_not_running");
    home.must(&["resume", "dev"]);

    home.must(&["create", "--name", "sleeper", "--hibernate-after", "1s"]);
    exec(&home, "sleeper", "echo in-memory > /dev/shm/word; echo on-disk > /root/word");
    let detached = home.must(&["exec", "-d", "sleeper", "--", "sleep", "1000"]);
    until("it sleeps", 30, || home.state("sleeper").0 == "hibernated");
    let id = home.json(&["inspect", "sleeper"])["id"].as_str().unwrap().to_owned();
    assert!(home.processes_of(&id).is_none(), "its machine lives on while it sleeps");
    assert_eq!(home.json(&["snapshot", "ls"])["snapshots"].as_array().unwrap().len(), 0);
    home.end_server();
    assert_eq!(
        exec(&home, "sleeper", "cat /dev/shm/word /root/word; hostname"),
        "in-memory\non-disk\nsleeper"
    );
    assert!(home.must(&["ps", "sleeper"]).contains(detached.trim()), "its process was lost in its sleep");
    // By hand, and deleted in its sleep.
    home.must(&["hibernate", "dev", "sleeper"]);
    home.must(&["start", "dev"]);
    assert_eq!(exec(&home, "dev", "cat /dev/shm/word"), "in-memory");
    home.must(&["rm", "--all"]);
    until("nothing is left of its sleep", 20, || names(&home.root().join("snapshots")).len() == 1);
}
