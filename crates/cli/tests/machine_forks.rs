//! Forks: children are whole, of one moment, and somebody else.
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "tests fail by panicking and say why they skip")]

mod support;

use std::collections::BTreeSet;
use std::time::Instant;

use support::{Home, until};

/// Rounds of a test that grows with them; more by `MICROVM_FORK_ROUNDS`.
fn rounds(usual: usize) -> usize {
    std::env::var("MICROVM_FORK_ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(usual)
}

fn exec(home: &Home, vm: &str, script: &str) -> String {
    home.must(&["exec", vm, "--", "sh", "-c", script]).trim_end().to_owned()
}

#[test]
fn children_go_on_with_everything_but_the_identity() {
    let Some(home) = Home::open() else { return };
    home.must(&["create", "--name", "dev", "-e", "SHARED=of-all"]);
    exec(&home, "dev", "echo before > /root/file; mkfifo /tmp/in");
    home.must(&[
        "exec",
        "-d",
        "dev",
        "--",
        "sh",
        "-c",
        "n=0; while :; do read word < /tmp/in || continue; n=$((n+1)); echo $word $n >> /root/log; done",
    ]);
    home.must(&["exec", "-d", "dev", "--", "sh", "-c", "exec sleep 1000"]);
    let forked = home.json(&["fork", "dev", "--count", "3", "--name", "try-{n}", "--label", "kind=child"]);
    let names: Vec<&str> =
        forked["vms"].as_array().unwrap().iter().map(|vm| vm["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["try-1", "try-2", "try-3"]);
    assert!(forked["pause_ms"].as_f64().unwrap() > 0.0, "{forked}");
    assert_eq!(forked["vms"][0]["labels"]["kind"], "child");

    let everyone = ["dev", "try-1", "try-2", "try-3"];
    let of_all =
        |script: &str| -> Vec<String> { everyone.iter().map(|vm| exec(&home, vm, script)).collect() };
    for different in [
        "hostname",
        "cat /etc/machine-id",
        "head -c 16 /dev/urandom | od -An -tx8",
        "cat /proc/sys/kernel/random/uuid",
    ] {
        let found: BTreeSet<String> = of_all(different).into_iter().collect();
        assert_eq!(found.len(), everyone.len(), "{different} is the same in two: {found:?}");
    }
    assert_eq!(of_all("hostname"), everyone);
    assert_eq!(of_all("cat /root/file; echo $SHARED"), ["before\nof-all"; 4]);
    for vm in everyone {
        let there: i64 = exec(&home, vm, "date +%s%3N").parse().unwrap();
        let here = i64::try_from(std::time::UNIX_EPOCH.elapsed().unwrap().as_millis()).unwrap();
        assert!((here - there).abs() < 2_000, "the clock of {vm} is wrong by {} ms", here - there);
        // The process of the parent goes on in each, with its variable, on a disk of its own.
        exec(&home, vm, &format!("echo {vm} > /tmp/in; until grep -q {vm} /root/log; do :; done"));
        assert_eq!(exec(&home, vm, "cat /root/log"), format!("{vm} 1"));
        assert_eq!(
            exec(&home, vm, "grep -lx sleep /proc/[0-9]*/comm | wc -l"),
            "1",
            "a process is missing in {vm}"
        );
    }
    // Processes started through the agent are known to the child's agent too.
    assert!(home.must(&["ps", "try-1"]).contains("sleep"), "{}", home.must(&["ps", "try-1"]));
    // Deleting the parent first takes nothing from its children.
    home.must(&["rm", "dev"]);
    assert_eq!(
        exec(&home, "try-2", "cat /root/file; sync; echo 3 > /proc/sys/vm/drop_caches; cat /root/log"),
        "before\ntry-2 1"
    );
    let ids = home.ids();
    home.must(&["rm", "--all"]);
    home.expect_nothing_left(&ids);
}

#[test]
fn memory_and_disk_are_of_one_moment() {
    let Some(home) = Home::open() else { return };
    home.must(&["create", "--name", "dev"]);
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/guest/counter.py");
    home.must(&["cp", script, "dev:/root/counter.py"]);
    for part in ["count", "answer"] {
        home.must(&["exec", "-d", "dev", "--", "python3", "/root/counter.py", part]);
    }
    until("it counts", 100, || {
        let ready = "test -s /root/counter/0 && test -p /dev/shm/ask";
        home.run(&["exec", "dev", "--", "sh", "-c", ready]).status.success()
    });
    let ask = "echo > /dev/shm/ask; read said < /dev/shm/answer; echo $said";
    let (rounds, begun, mut last) = (rounds(12), Instant::now(), 0);
    for round in 1..=rounds {
        // Now and then two of one moment.
        let count = if round % 4 == 0 { 2 } else { 1 };
        let asked = home.json(&["fork", "dev", "-n", &count.to_string(), "--", "sh", "-c", ask]);
        let children = asked.as_array().unwrap();
        assert_eq!(children.len(), count, "round {round}: {asked}");
        for child in children {
            let said = child["stdout"].as_str().unwrap().trim_end();
            let number = said.strip_prefix("agree ").and_then(|number| number.parse::<u64>().ok());
            last = number.unwrap_or_else(|| panic!("round {round}: {child}"));
        }
        if round % 50 == 0 {
            eprintln!(
                "{round} rounds, at number {last}, {:.2} s a round",
                begun.elapsed().as_secs_f64() / round as f64
            );
        }
    }
    home.must(&["rm", "dev"]);
}

#[test]
fn generations_keep_every_file_and_every_variable() {
    let Some(home) = Home::open() else { return };
    home.must(&["create", "--name", "g-0"]);
    exec(&home, "g-0", "mkfifo /tmp/ask; : > /tmp/answer");
    // A reader that opens the pipe before its last writer has closed it reads nothing.
    let shell = "sum=0; while :; do read number < /tmp/ask || continue; sum=$((sum+number)); echo $sum > /tmp/answer; done";
    home.must(&["exec", "-d", "g-0", "--", "sh", "-c", shell]);
    let generations = rounds(6).min(50);
    let mut sum = 0;
    for generation in 1..=generations {
        let (parent, child) = (format!("g-{}", generation - 1), format!("g-{generation}"));
        sum += generation;
        exec(
            &home,
            &parent,
            &format!(
                "echo {generation} > /tmp/ask; until grep -qx {sum} /tmp/answer; do :; done; echo {generation} >> /root/all; cp /root/all /root/file-{generation}"
            ),
        );
        home.must(&["fork", &parent, "--name", &child]);
        // Every second parent goes at once, the others stay and are no worse for it.
        if generation % 2 == 0 {
            home.must(&["rm", &parent]);
        }
    }
    let last = format!("g-{generations}");
    let expected: Vec<String> = (1..=generations).map(|generation| generation.to_string()).collect();
    assert_eq!(
        exec(&home, &last, "sync; echo 3 > /proc/sys/vm/drop_caches; cat /root/all"),
        expected.join("\n")
    );
    assert_eq!(
        exec(&home, &last, "cat /tmp/answer; ls /root | grep -c file-"),
        format!("{sum}\n{generations}")
    );
    let first = exec(&home, "g-0", "cat /root/all");
    assert_eq!(first, "1");
    let ids = home.ids();
    home.must(&["rm", "--all"]);
    home.expect_nothing_left(&ids);
}

/// Writes one number after the other all over 96 MiB, as fast as it can. Told to stop in the middle of a pass it looks
/// whether everything before that place has the number of this pass and everything after it that of the one before.
const HOT: &str = "
import os, mmap
size = 96 << 20
memory = mmap.mmap(-1, size)
def stop(number, place):
    old, new = ((value.to_bytes(8, 'little') * 512) for value in (number - 1, number))
    whole = all(memory[at:at + 4096] == (new if at <= place else old) for at in range(0, size, 4096))
    with open('/tmp/verdict.new', 'w') as file:
        file.write('whole' if whole else 'torn')
    os.rename('/tmp/verdict.new', '/tmp/verdict')
    raise SystemExit
number = 0
while True:
    number += 1
    page = number.to_bytes(8, 'little') * 512
    for at in range(0, size, 4096):
        memory[at:at + 4096] = page
        if at % (1 << 20) == 0 and os.path.exists('/tmp/stop'):
            stop(number, at)
    with open('/tmp/passes', 'w') as file:
        file.write(str(number))
";

#[test]
fn a_guest_that_writes_memory_as_fast_as_it_can_is_forked_whole() {
    let Some(home) = Home::open() else { return };
    home.must(&["create", "--name", "dev", "--memory", "384MiB"]);
    home.must(&["exec", "-d", "dev", "--", "python3", "-c", HOT]);
    let passes =
        |vm: &str| exec(&home, vm, "cat /tmp/passes 2>/dev/null || echo 0").parse::<u64>().unwrap_or(0);
    until("it has written everything once", 100, || passes("dev") > 0);
    for round in 1..=rounds(3).min(20) {
        let child = format!("child-{round}");
        let before = passes("dev");
        home.must(&["fork", "dev", "--name", &child]);
        exec(&home, &child, "touch /tmp/stop");
        until("the child has looked at its memory", 100, || {
            home.run(&["exec", &child, "--", "test", "-e", "/tmp/verdict"]).status.success()
        });
        assert_eq!(exec(&home, &child, "cat /tmp/verdict"), "whole", "round {round}");
        until("the parent goes on", 100, || passes("dev") > before);
        home.must(&["rm", &child]);
    }
    let process = home.json(&["ps", "dev"]);
    assert!(process.to_string().contains("python3"), "{process}");
    home.must(&["rm", "dev"]);
}

#[test]
fn impossible_forks_are_refused_and_leave_nothing() {
    let Some(home) = Home::open() else { return };
    home.must(&["create", "--name", "dev"]);
    home.must(&["create", "--name", "taken", "--no-start"]);
    let ids = home.ids();
    let (_, problem) = home.must_fail(&["fork", "taken"]);
    assert_eq!(problem["code"], "vm_not_running", "{problem}");
    let (_, problem) = home.must_fail(&["fork", "dev", "--name", "taken"]);
    assert_eq!(problem["code"], "vm_name_taken", "{problem}");
    let (_, problem) = home.must_fail(&["fork", "dev", "--count", "2", "--name", "same"]);
    assert!(problem["detail"].as_str().unwrap().contains("{n}"), "{problem}");
    let (_, problem) = home.must_fail(&["fork", "dev", "--count", "0"]);
    assert_eq!(problem["code"], "invalid_field", "{problem}");
    let (exit, problem) = home.must_fail(&["fork", "dev", "--count", "100000"]);
    assert_eq!(exit, 105, "{problem}");
    let (_, problem) = home.must_fail(&["fork", "nobody"]);
    assert_eq!(problem["code"], "vm_not_found", "{problem}");
    assert_eq!(home.ids(), ids);
    // A paused VM can be forked and stays paused.
    home.must(&["pause", "dev"]);
    home.must(&["fork", "dev", "--name", "awake"]);
    assert_eq!(home.state("dev").0, "paused");
    assert_eq!(exec(&home, "awake", "hostname"), "awake");
    let ids = home.ids();
    home.must(&["rm", "--all"]);
    home.expect_nothing_left(&ids);
}
