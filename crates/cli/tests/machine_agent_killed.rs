//! An agent that its guest kills or stops, and a server that is stopped: what has ended has failed, what lives is left alone.
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "tests fail by panicking and say why they skip")]

mod support;

use std::time::Duration;

use support::{Home, agent_killer, signal, until};

/// A VM whose disk and console hold something.
fn prepare(home: &Home) {
    home.must(&["create", "--name", "dev"]);
    home.must(&[
        "exec",
        "dev",
        "--",
        "sh",
        "-c",
        "echo kept > /root/file; sync; echo last words > /dev/console",
    ]);
    until("its words are kept", 10, || home.must(&["logs", "dev", "--console"]).contains("last words"));
}

#[test]
fn a_killed_agent_ends_its_guest_which_can_start_again() {
    let Some(home) = Home::open() else { return };
    prepare(&home);
    let ids = home.ids();
    // Without `-d`: whoever waits for a command is told that the guest is gone.
    let output = home.run(&["exec", "dev", "--", "python3", "-c", agent_killer::CRASH]);
    assert_eq!(output.status.code(), Some(125), "{output:?}");
    until("the VM has failed", 20, || home.state("dev").0 == "failed");
    let (_, reason) = home.state("dev");
    assert!(reason.contains("panic"), "{reason}");
    assert!(home.processes_of(ids.first().unwrap()).is_none(), "its VMM is left");
    let console = home.must(&["logs", "dev", "--console"]);
    assert!(console.contains("last words") && console.contains("Attempted to kill init"), "{console}");
    let (exit, problem) = home.must_fail(&["exec", "dev", "--", "true"]);
    assert_eq!((exit, &problem["kind"]), (125, &"conflict".into()), "{problem}");
    home.must(&["start", "dev"]);
    assert_eq!(home.must(&["exec", "dev", "--", "cat", "/root/file"]), "kept\n");
    home.must(&["rm", "dev"]);
    home.expect_nothing_left(&ids);
}

#[test]
fn a_killed_agent_does_not_keep_its_vm_from_being_removed() {
    let Some(home) = Home::open() else { return };
    prepare(&home);
    let ids = home.ids();
    home.must(&["exec", "-d", "dev", "--", "python3", "-c", agent_killer::CRASH]);
    // At once: whatever is known of the guest's end by then.
    home.must(&["rm", "dev"]);
    assert!(home.states().is_empty());
    home.expect_nothing_left(&ids);
}

/// Longer than an agent may be silent.
const STOPPED_FOR: Duration = Duration::from_secs(40);

#[test]
fn neither_a_stopped_server_nor_a_stopped_agent_ends_a_vm() {
    let Some(home) = Home::open() else { return };
    prepare(&home);
    let ids = home.ids();
    let id = ids.first().unwrap();
    let before = home.processes_of(id).unwrap();
    // A server that gets no processor, as on a host that is overloaded: time is what this is about.
    let server = home.server().unwrap();
    signal("STOP", server);
    std::thread::sleep(STOPPED_FOR);
    signal("CONT", server);
    let seen = std::time::Instant::now();
    while seen.elapsed() < Duration::from_secs(12) {
        let vm = home.json(&["inspect", "dev"]);
        assert_eq!(
            (vm["state"].as_str(), vm["unreachable_since"].is_null()),
            (Some("running"), true),
            "{vm}"
        );
        std::thread::sleep(Duration::from_millis(500));
    }
    assert_eq!(home.must(&["exec", "dev", "--", "cat", "/root/file"]), "kept\n");
    assert_eq!(home.processes_of(id), Some(before), "another VMM");
    // The kernel and the monitor go on: only the missing heartbeats tell.
    home.must(&["exec", "-d", "dev", "--", "python3", "-c", agent_killer::FREEZE]);
    until("it is unreachable", 90, || home.json(&["inspect", "dev"])["unreachable_since"].is_string());
    let vm = home.json(&["inspect", "dev"]);
    assert_eq!((vm["state"].as_str(), vm["reachable"].as_bool()), (Some("running"), Some(false)), "{vm}");
    assert!(vm["unreachable_reason"].as_str().is_some_and(|why| why.contains("heartbeat")), "{vm}");
    assert!(home.must(&["ls"]).contains("running (unreachable)"));
    let (exit, problem) = home.must_fail(&["exec", "dev", "--", "true"]);
    assert_eq!((exit, problem["code"].as_str()), (125, Some("vm_unreachable")), "{problem}");
    assert_eq!(home.processes_of(id), Some(before), "its VMM was ended");
    assert!(home.must(&["logs", "dev", "--console"]).contains("last words"), "its console is lost");
    // A VMM that nothing in its directory names: the next server ends it all the same when its VM is deleted.
    home.kill_server();
    std::fs::remove_file(home.root().join("vms").join(id).join("process.json")).unwrap();
    home.must(&["rm", "dev"]);
    assert!(home.states().is_empty());
    home.expect_nothing_left(&ids);
}
