//! A disk that is full during a branch, a snapshot, a prune, the filling of a pool and an acquire: each is told, nothing is
//! lost, and everything works as soon as there is room.
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "tests fail by panicking and say why they skip")]

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use support::small_disk::furnished;
use support::{Home, names, text};

/// Takes the rest of a disk; gives it back when dropped.
struct Ballast(PathBuf);

impl Ballast {
    fn fill(root: &Path, but_kib: u64) -> Self {
        let path = root.join("ballast");
        let free = Command::new("df").args(["--output=avail", "--block-size=1K"]).arg(root).output().unwrap();
        let free: u64 = text(&free.stdout).lines().last().unwrap().trim().parse().unwrap();
        // The last blocks by writing: how many the file system needs for itself is not known.
        let script = "fallocate -l \"$2\" \"$1\" && { [ \"$3\" != 0 ] || cat /dev/zero >> \"$1\" 2> /dev/null || true; }";
        let length = format!("{}K", free.saturating_sub(but_kib + 512).max(1));
        let mut fill = Command::new("sh");
        let filled = fill.args(["-c", script, "sh"]).arg(&path).args([length, but_kib.to_string()]).status();
        assert!(filled.unwrap().success());
        Self(path)
    }
}

impl Drop for Ballast {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

fn exec(home: &Home, vm: &str, script: &str) -> String {
    home.must(&["exec", vm, "--", "sh", "-c", script]).trim_end().to_owned()
}

fn snapshots(home: &Home) -> usize {
    home.json(&["snapshot", "ls"])["snapshots"].as_array().unwrap().len()
}

#[test]
fn branches_snapshots_prunes_and_pools_live_through_a_full_disk() {
    let Some(mut home) = Home::open() else { return };
    let whole = home.root().join("whole");
    let Some(small) = furnished(&mut home, &whole, 600) else { return };
    home.must(&["create", "--name", "dev", "--memory", "256MiB"]);
    exec(&home, "dev", "head -c 12000000 /dev/urandom > /dev/shm/noise; echo kept > /root/note; sync");
    for name in ["one", "two", "three"] {
        exec(
            &home,
            "dev",
            &format!("echo {name} >> /root/note; head -c 2000000 /dev/urandom > /dev/shm/{name}"),
        );
        home.must(&["snapshot", "create", "dev", "--name", name]);
    }
    home.must(&["pool", "create", "py", "--memory", "256MiB", "--min", "1", "--max", "3"]);
    let waiting = || home.json(&["pool", "show", "py"])["waiting"].as_u64().unwrap();
    support::until("a VM waits", 60, || waiting() == 1);
    let noise = exec(&home, "dev", "md5sum /dev/shm/noise /root/note");

    let mut refused = 0;
    for left_kib in [0, 200, 1_000, 5_000] {
        let ballast = Ballast::fill(&whole, left_kib);
        let attempts: [&[&str]; 4] = [
            &["fork", "dev", "--count", "2", "--name", "full-{n}"],
            &["snapshot", "create", "dev", "--name", "full"],
            &["snapshot", "prune", "--named", "--keep", "2"],
            &["restore", "one", "--name", "full-copy"],
        ];
        for attempt in attempts {
            let output = home.run(&[&["--output", "json"], attempt].concat());
            if !output.status.success() {
                let said = text(&output.stderr);
                assert!(
                    said.contains("space") || said.contains("full"),
                    "{attempt:?} with {left_kib} KiB: {said}"
                );
                refused += 1;
            }
        }
        // Handed out, made, or refused with the reason: never half.
        let taken = home.run(&["--output", "json", "run", "--pool", "py", "--", "echo", "from-the-pool"]);
        let said = text(&taken.stdout) + &text(&taken.stderr);
        assert!(said.contains("from-the-pool") || said.contains("space") || said.contains("full"), "{said}");
        assert_eq!(exec(&home, "dev", "md5sum /dev/shm/noise /root/note"), noise, "with {left_kib} KiB");
        drop(ballast);
        for gone in ["full-1", "full-2", "full-copy"] {
            let _ = home.run(&["rm", gone]);
        }
        let _ = home.run(&["snapshot", "rm", "full"]);
    }
    assert!(refused > 0, "nothing was refused on a full disk");

    // There is room: everything that was there is whole, and everything works.
    support::until("the pool is filled again", 100, || waiting() == 1);
    assert!(home.must(&["run", "--pool", "py", "--", "echo", "fine"]).contains("fine"));
    assert!(snapshots(&home) >= 2);
    assert!(home.run(&["snapshot", "verify"]).status.success());
    home.must(&["restore", "three", "--name", "copy"]);
    assert_eq!(exec(&home, "copy", "cat /root/note"), "kept\none\ntwo\nthree");
    home.must(&["fork", "dev", "--name", "child"]);
    assert_eq!(exec(&home, "child", "md5sum /dev/shm/noise /root/note"), noise);
    home.must(&["pool", "rm", "py"]);
    let ids = names(&whole.join("vms"));
    home.must(&["rm", "--all"]);
    home.must(&["snapshot", "prune", "--named", "--keep", "0"]);
    support::until("no VM is left", 60, || names(&whole.join("vms")).is_empty());
    assert_eq!(snapshots(&home), 0);
    support::end_server_on(&whole);
    drop(small);
    home.expect_nothing_left(&ids);
}

#[test]
fn a_guest_that_fills_the_disk_of_the_host_costs_no_guest_its_file_system() {
    let Some(mut home) = Home::open() else { return };
    let whole = home.root().join("whole");
    let Some(small) = furnished(&mut home, &whole, 500) else { return };
    // What the VMM does by itself: without a reserve.
    home.set("MICROVM_DISK_RESERVE", "0");
    for name in ["filler", "victim"] {
        home.must(&["create", "--name", name, "--memory", "256MiB"]);
    }
    let ballast = Ballast::fill(&whole, 20_000);
    let fill =
        "head -c 60000000 /dev/urandom | tee /root/big | md5sum > /dev/shm/sum; sync; touch /dev/shm/done";
    home.must(&["exec", "-d", "filler", "--", "sh", "-c", fill]);
    let beat = "n=0; while [ $n -lt 100000 ]; do n=$((n + 1)); head -c 200000 /dev/urandom > /root/$((n % 50)) || \
                touch /dev/shm/failed; sync; done";
    home.must(&["exec", "-d", "victim", "--", "sh", "-c", beat]);
    let rest = |vm: &str| home.json(&["inspect", vm])["rest"]["kind"].as_str().map(str::to_owned);
    for name in ["filler", "victim"] {
        support::until("the disk is full", 100, || rest(name).as_deref() == Some("disk_full"));
        assert_eq!(home.state(name).0, "paused");
    }
    assert!(home.must(&["ls"]).contains("paused (disk full)"));
    let (_, problem) = home.must_fail(&["exec", "victim", "--", "true"]);
    assert!(problem["detail"].as_str().unwrap().contains("disk"), "{problem}");
    drop(ballast);
    for name in ["filler", "victim"] {
        support::until("there is room", 60, || home.state(name).0 == "running" && rest(name).is_none());
    }
    support::until("the file is written", 100, || {
        home.run(&["exec", "filler", "--", "test", "-e", "/dev/shm/done"]).status.success()
    });
    let sums =
        exec(&home, "filler", "echo 3 > /proc/sys/vm/drop_caches; md5sum < /root/big; cat /dev/shm/sum");
    let (read, written) = sums.split_once('\n').unwrap();
    assert_eq!(read, written, "what was written when the disk was full is not what was to be written");
    assert_eq!(exec(&home, "victim", "test ! -e /dev/shm/failed && touch /root/ok && echo fine"), "fine");
    home.must(&["rm", "--all"]);
    support::end_server_on(&whole);
    drop(small);
}

#[test]
fn vms_stand_still_at_the_limit_of_a_root_and_go_on_when_something_is_removed() {
    let Some(mut home) = Home::open() else { return };
    let limit = 700 << 20;
    home.set("MICROVM_DISK_LIMIT", "700MiB");
    home.must(&["create", "--name", "dev", "--memory", "256MiB"]);
    // Held by the snapshot alone from here on.
    exec(&home, "dev", "head -c 100000000 /dev/urandom > /root/old; sync");
    home.must(&["snapshot", "create", "dev", "--name", "kept"]);
    exec(&home, "dev", "rm /root/old; sync");

    // Never stops by itself; the guest's disk has room for far more.
    let fill = "n=0; while :; do n=$((n + 1)); head -c 4000000 /dev/urandom > /root/$n; md5sum /root/$n >> /dev/shm/sums; \
                sync; done";
    home.must(&["exec", "-d", "dev", "--", "sh", "-c", fill]);
    let rest = |vm: &str| home.json(&["inspect", vm])["rest"]["kind"].as_str().map(str::to_owned);
    support::until("the limit is reached", 100, || rest("dev").as_deref() == Some("disk_full"));
    let held = || {
        ["vms", "layers", "snapshots", "memory"]
            .iter()
            .map(|part| taken(&home.root().join(part)))
            .sum::<u64>()
    };
    let at_limit = held();
    assert!(at_limit > limit / 2, "it was stopped at {at_limit} bytes");
    assert!(at_limit < limit + (300 << 20), "it went on to {at_limit} bytes");
    std::thread::sleep(std::time::Duration::from_secs(3));
    assert_eq!(held(), at_limit, "it stands still and its files grow");

    // Nothing new is begun, and each refusal says why.
    for attempt in [
        &["create", "--name", "other"][..],
        &["restore", "kept", "--name", "copy"],
        &["exec", "dev", "--", "true"],
    ] {
        let (_, problem) = home.must_fail(attempt);
        let said = problem["detail"].as_str().unwrap();
        assert!(
            said.contains("limit") || said.contains("room") || said.contains("disk"),
            "{attempt:?}: {problem}"
        );
    }

    home.must(&["snapshot", "rm", "kept"]);
    support::until("there is room", 60, || {
        rest("dev").is_none() && home.run(&["exec", "dev", "--", "true"]).status.success()
    });
    assert!(
        exec(&home, "dev", "pkill -f 'head -c' ; sleep 1; md5sum -c /dev/shm/sums | grep -vc OK || true")
            == "0"
    );
    home.must(&["rm", "--all"]);
}

/// Bytes that the files below a directory take.
fn taken(directory: &Path) -> u64 {
    let output = Command::new("du").args(["--summarize", "--block-size=1"]).arg(directory).output().unwrap();
    text(&output.stdout).split('\t').next().and_then(|bytes| bytes.parse().ok()).unwrap_or(0)
}
