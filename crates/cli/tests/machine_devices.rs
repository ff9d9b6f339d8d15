//! More devices than the command line of a kernel can tell of, in a machine that is forked, saved and restored.
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "tests fail by panicking and say why they skip")]

mod support;

use serde_json::json;
use support::Home;

/// Further disks; with channel, balloon, image and scratch disk more than twice what the command line has places for.
const DISKS: usize = 12;

#[test]
fn twelve_further_disks_are_there_in_a_vm_its_fork_and_its_snapshot() {
    let Some(home) = Home::open() else { return };
    let templates = home.root().join("templates");
    std::fs::create_dir_all(&templates).unwrap();
    let disks: Vec<_> = (1..=DISKS)
        .map(|number| {
            let path = home.root().join(format!("disk{number}.raw"));
            // A word that only this disk has, at the beginning of 1 MiB.
            let mut content = format!("content of {number:02}\n").into_bytes();
            content.resize(1 << 20, 0);
            std::fs::write(&path, content).unwrap();
            // One is written to, so that the branch takes it along.
            json!({ "name": format!("data-{number:02}"), "path": path, "read_only": number > 1 })
        })
        .collect();
    let template = |disks: &[serde_json::Value]| {
        json!({
            "name": "many", "image": "debian-python", "kernel": "built", "memory_mib": 256, "extra_disks": disks,
        })
    };
    std::fs::write(templates.join("many.json"), template(&disks).to_string()).unwrap();
    home.must(&["create", "--name", "dev", "--template", "many"]);

    let word = "head -c 14 /dev/$(basename $(dirname $(grep -lx data-$n /sys/block/vd*/serial)))";
    let all = format!("for n in $(seq -w 1 {DISKS}); do {word}; done");
    let expected: String = (1..=DISKS).map(|number| format!("content of {number:02}\n")).collect();
    let sh = |vm: &str, script: &str| home.must(&["exec", vm, "--", "sh", "-ec", script]);
    assert_eq!(sh("dev", &all), expected);

    let written = "printf 'written by dev' | dd of=/dev/$(basename $(dirname $(grep -lx data-01 /sys/block/vd*/serial))) conv=fsync 2>&1";
    sh("dev", &format!("echo before > /dev/shm/note; {written}"));
    home.must(&["snapshot", "create", "dev", "--name", "one"]);
    home.must(&["fork", "dev", "--name", "child"]);
    sh("dev", "echo later > /dev/shm/note");
    home.must(&["restore", "one", "--name", "back"]);
    let changed = expected.replacen("content of 01\n", "written by dev", 1);
    let fresh = format!("echo 3 > /proc/sys/vm/drop_caches; cat /dev/shm/note; {all}");
    for vm in ["child", "back"] {
        assert_eq!(sh(vm, &fresh), format!("before\n{changed}"), "{vm}");
    }

    // Where there are few devices they are told on the command line, as ever: that boots fastest.
    std::fs::write(templates.join("many.json"), template(&disks[1..4]).to_string()).unwrap();
    home.must(&["create", "--name", "few", "--template", "many"]);
    assert!(sh("few", "cat /proc/cmdline").contains("virtio_mmio.device="));
    assert!(!sh("dev", "cat /proc/cmdline").contains("virtio_mmio.device="));

    // What no machine can have is refused before anything is made.
    let more: Vec<_> = (0..21)
        .map(|number| {
            json!({ "name": format!("more-{number}"), "path": home.root().join("disk2.raw"), "read_only": true })
        })
        .collect();
    std::fs::write(templates.join("many.json"), template(&more).to_string()).unwrap();
    let refused = home.run(&["create", "--name", "no", "--template", "many"]);
    let said = support::text(&refused.stderr);
    assert!(!refused.status.success() && said.contains("extra_disks") && said.contains("20"), "{said}");
}
