//! Named volumes: what one VM wrote the next one reads, whatever became of the first; children have copies of their own.
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "tests fail by panicking and say why they skip")]

mod support;

use support::Home;

fn exec(home: &Home, vm: &str, script: &str) -> String {
    home.must(&["exec", vm, "--", "sh", "-ec", script]).trim_end().to_owned()
}

#[test]
fn a_volume_outlives_its_vms_and_children_have_their_own() {
    let Some(home) = Home::open() else { return };
    home.must(&["volume", "create", "data", "--size", "64MiB"]);
    home.must(&["create", "--name", "one", "-m", "256", "-v", "data:/data"]);
    assert_eq!(exec(&home, "one", "ls -A /data; stat -c %a /data"), "755", "it is empty");
    exec(&home, "one", "echo first > /data/file; sync");
    let refused = home.run(&["create", "--name", "two", "-v", "data:/data:ro"]);
    assert!(!refused.status.success());
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(said.contains("`data`") && said.contains("`one`"), "{said}");

    // A child has the moment, and what it writes is its own.
    home.must(&["fork", "one", "--name", "child"]);
    exec(&home, "child", "grep -x first /data/file; echo of the child > /data/file; sync");
    exec(
        &home,
        "one",
        "echo second > /data/file; sync; echo 3 > /proc/sys/vm/drop_caches; grep -x second /data/file",
    );
    // Killed in the middle of its work: the journal is replayed by the next one.
    exec(&home, "one", "echo third > /data/synced; sync /data/synced; echo late > /data/late");
    home.must(&["kill", "one", "-s", "KILL"]);
    home.must(&["rm", "one"]);
    home.must(&["create", "--name", "two", "-m", "256", "-v", "data:/elsewhere"]);
    assert_eq!(exec(&home, "two", "cat /elsewhere/file /elsewhere/synced"), "second\nthird");
    exec(&home, "child", "grep -x 'of the child' /data/file");
    home.must(&["rm", "two", "child"]);

    // It was left in order by a stop, so it can be read without being written to.
    home.must(&["run", "-m", "256", "-v", "data:/data", "--", "sh", "-c", "echo fourth > /data/file"]);
    let read = home.must(&[
        "run",
        "-m",
        "256",
        "-v",
        "data:/data:ro",
        "--",
        "sh",
        "-c",
        "cat /data/file; ! touch /data/x 2>/dev/null",
    ]);
    assert_eq!(read.trim_end(), "fourth");
    home.must(&["volume", "rm", "data"]);
}
