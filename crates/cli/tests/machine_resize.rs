//! Memory that a running guest gives up is memory that the host has again, and what is branched afterwards is whole.
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "tests fail by panicking and say why they skip")]

mod support;

use std::time::{Duration, Instant};

use support::Home;

/// Private memory of the VMM of a VM, in KiB.
fn private_kib(home: &Home, vm: &str) -> u64 {
    let id = home.json(&["inspect", vm])["id"].as_str().unwrap().to_owned();
    let record = std::fs::read(home.root().join("vms").join(id).join("process.json")).unwrap();
    let record: serde_json::Value = serde_json::from_slice(&record).unwrap();
    let rollup = std::fs::read_to_string(format!("/proc/{}/smaps_rollup", record["vmm"]["pid"])).unwrap();
    let line = rollup.lines().find_map(|line| line.strip_prefix("Private_Dirty:")).unwrap();
    line.split_whitespace().next().unwrap().parse().unwrap()
}

#[test]
fn memory_that_a_guest_gives_up_goes_back_to_the_host() {
    let Some(home) = Home::open() else { return };
    home.must(&["create", "--name", "dev", "--memory", "384MiB"]);
    let sh = |vm: &str, script: &str| home.must(&["exec", vm, "--", "sh", "-ec", script]);
    let sum = sh("dev", "head -c 4M /dev/urandom > /dev/shm/kept; sha256sum < /dev/shm/kept");
    sh("dev", "head -c 160M /dev/urandom > /dev/shm/much; rm /dev/shm/much");
    let before = private_kib(&home, "dev");
    home.must(&["resize", "dev", "--memory", "96MiB"]);
    // No event tells when the balloon has its size; at the least the 160 MiB that were written are given up.
    let deadline = Instant::now() + Duration::from_secs(60);
    while private_kib(&home, "dev") + (120 << 10) > before {
        assert!(Instant::now() < deadline, "{before} KiB before, {} after", private_kib(&home, "dev"));
        std::thread::sleep(Duration::from_millis(200));
    }
    eprintln!("{before} KiB before the resize, {} KiB after it", private_kib(&home, "dev"));
    home.must(&["resize", "dev", "--memory", "384MiB"]);
    // The guest uses again what it gave up, in itself and in a child.
    home.must(&["fork", "dev", "--name", "child"]);
    for vm in ["dev", "child"] {
        assert_eq!(
            sh(vm, "head -c 64M /dev/zero > /dev/shm/more; rm /dev/shm/more; sha256sum < /dev/shm/kept"),
            sum
        );
    }
    for vm in ["dev", "child"] {
        home.must(&["rm", vm]);
    }
}
