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

/// Waits until the memory that a guest shows fits. Its kernel keeps a part of it, and notes of all pages of its machine.
fn await_memory(home: &Home, vm: &str, fits: impl Fn(u64) -> bool) {
    // No event tells when the balloon has its size.
    support::until(&format!("the guest of {vm} shows the memory it has"), 30, || {
        let line = home.must(&["exec", vm, "--", "grep", "MemTotal", "/proc/meminfo"]);
        let shown = line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() >> 10;
        fits(shown)
    });
}

#[test]
fn memory_grows_up_to_what_the_machine_was_made_with() {
    let Some(home) = Home::open() else { return };
    let sizes = |vm: &str| {
        let shown = home.json(&["inspect", vm]);
        (shown["memory_mib"].as_u64().unwrap(), shown["memory_max_mib"].as_u64().unwrap())
    };
    let use_mib = |vm: &str, mib: u32| {
        let script = format!("memory = bytearray({mib} << 20); print(len(memory) >> 20)");
        assert_eq!(home.must(&["exec", vm, "--", "python3", "-c", &script]).trim(), mib.to_string());
    };
    home.must(&["create", "--name", "dev", "--memory", "192MiB", "--memory-max", "640MiB"]);
    assert_eq!(sizes("dev"), (192, 640));
    await_memory(&home, "dev", |shown| shown <= 192);
    home.must(&["resize", "dev", "--memory", "640MiB"]);
    assert_eq!(sizes("dev"), (640, 640));
    await_memory(&home, "dev", |shown| shown > 580);
    use_mib("dev", 400);
    let (_, error) = home.must_fail(&["resize", "dev", "--memory", "641MiB"]);
    assert_eq!(error["code"], "over_limit", "{error}");
    let (_, error) = home.must_fail(&["resize", "dev", "--memory", "256MiB", "--cpus", "2"]);
    assert_eq!(error["code"], "no_processor_hotplug", "{error}");
    assert_eq!(sizes("dev"), (640, 640), "a request that was refused has changed something");
    // A fork has what its source has now, and goes up and down by itself.
    home.must(&["fork", "dev", "--name", "child"]);
    assert_eq!(sizes("child"), (640, 640));
    home.must(&["resize", "child", "--memory", "256MiB"]);
    await_memory(&home, "child", |shown| shown <= 256);
    use_mib("dev", 400);
    // So do a snapshot and a VM that hibernated.
    home.must(&["snapshot", "create", "child", "--name", "small"]);
    home.must(&["restore", "small", "--name", "again"]);
    assert_eq!(sizes("again"), (256, 640));
    home.must(&["hibernate", "again"]);
    home.must(&["resize", "again", "--memory", "512MiB"]);
    await_memory(&home, "again", |shown| shown > 460 && shown <= 512);
    // A boot begins with what the VM was created with.
    home.must(&["restart", "dev"]);
    assert_eq!(sizes("dev"), (192, 640));
    await_memory(&home, "dev", |shown| shown <= 192);
    let (_, error) = home.must_fail(&["create", "--memory", "256MiB", "--memory-max", "128MiB"]);
    assert_eq!(error["field"], "memory_max_mib", "{error}");
    for vm in ["dev", "child", "again"] {
        home.must(&["rm", vm]);
    }
}
