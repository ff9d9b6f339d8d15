//! An agent that its guest kills or stops: the VM has failed, it is told why, and nothing is left of it.
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "tests fail by panicking and say why they skip")]

mod support;

use support::{Home, agent_killer, until};

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
    assert!(output.status.code().is_some_and(|code| code >= 100), "{output:?}");
    until("the VM has failed", 20, || home.state("dev").0 == "failed");
    let (_, reason) = home.state("dev");
    assert!(reason.contains("panic"), "{reason}");
    assert!(home.processes_of(ids.first().unwrap()).is_none(), "its VMM is left");
    let console = home.must(&["logs", "dev", "--console"]);
    assert!(console.contains("last words") && console.contains("Attempted to kill init"), "{console}");
    let (exit, problem) = home.must_fail(&["exec", "dev", "--", "true"]);
    assert_eq!(exit, 103, "{problem}");
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

#[test]
fn an_agent_that_its_guest_stops_is_noticed() {
    let Some(home) = Home::open() else { return };
    prepare(&home);
    let ids = home.ids();
    home.must(&["exec", "-d", "dev", "--", "python3", "-c", agent_killer::FREEZE]);
    // The kernel and the monitor go on: only the missing heartbeats tell.
    until("the VM has failed", 90, || home.state("dev").0 == "failed");
    let (_, reason) = home.state("dev");
    assert!(reason.contains("agent") && reason.contains("heartbeat"), "{reason}");
    assert!(home.processes_of(ids.first().unwrap()).is_none(), "its VMM is left");
    assert!(home.must(&["logs", "dev", "--console"]).contains("last words"), "its console is lost");
    home.must(&["rm", "dev"]);
    assert!(home.states().is_empty());
    home.expect_nothing_left(&ids);
}
