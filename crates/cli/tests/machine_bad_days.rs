//! Days on which guests die, hang, flood and multiply, and on which the server dies: each is told as what it is, and
//! nothing is lost or left behind.
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "tests fail by panicking and say why they skip")]

mod support;

use std::io::Read as _;
use std::process::Stdio;
use std::time::{Duration, Instant};

use support::{Home, signal, text, until};

#[test]
fn a_kernel_panic_is_told_with_its_console_and_the_vm_can_start_again() {
    let Some(home) = Home::open() else { return };
    home.must(&["create", "--name", "dev", "--kernel", "distribution"]);
    home.must(&["exec", "dev", "--", "sh", "-c", "echo kept > /root/file; sync"]);
    let ids = home.ids();
    let output = home.run(&["exec", "dev", "--", "sh", "-c", "echo c > /proc/sysrq-trigger; sleep 60"]);
    assert_eq!(output.status.code(), Some(125), "{output:?}");
    until("the VM has failed", 20, || home.state("dev").0 == "failed");
    let (_, reason) = home.state("dev");
    assert!(reason.contains("panic"), "{reason}");
    let console = home.must(&["logs", "dev", "--console"]);
    assert!(console.contains("Kernel panic"), "{console}");
    let (exit, problem) = home.must_fail(&["exec", "dev", "--", "true"]);
    assert_eq!((exit, &problem["kind"]), (125, &"conflict".into()), "{problem}");
    home.must(&["start", "dev"]);
    assert_eq!(home.must(&["exec", "dev", "--", "cat", "/root/file"]), "kept\n");
    home.must(&["rm", "dev"]);
    home.expect_nothing_left(&ids);
}

#[test]
fn a_killed_vmm_is_told_as_that() {
    let Some(home) = Home::open() else { return };
    home.must(&["create", "--name", "dev"]);
    let ids = home.ids();
    let (vmm, _) = home.processes_of(ids.first().unwrap()).unwrap();
    signal("KILL", vmm);
    until("the VM has failed", 20, || home.state("dev").0 == "failed");
    let (_, reason) = home.state("dev");
    assert!(reason.contains("signal 9"), "{reason}");
    home.must(&["start", "dev"]);
    home.must(&["rm", "dev"]);
    home.expect_nothing_left(&ids);
}

#[test]
fn an_agent_that_stops_answering_is_noticed() {
    let Some(home) = Home::open() else { return };
    home.must(&["create", "--name", "dev"]);
    let ids = home.ids();
    // A VM that was forked from its template's golden snapshot has printed nothing yet.
    home.must(&["exec", "dev", "--", "sh", "-c", "echo last words > /dev/console"]);
    until("its words are kept", 10, || home.must(&["logs", "dev", "--console"]).contains("last words"));
    let (vmm, _) = home.processes_of(ids.first().unwrap()).unwrap();
    // The whole machine stands still: neither agent nor monitor answer.
    signal("STOP", vmm);
    let lost = || home.json(&["inspect", "dev"])["unreachable_since"].is_string();
    until("it is unreachable", 90, lost);
    assert_eq!(home.state("dev"), ("running".to_owned(), String::new()));
    assert!(home.must(&["logs", "dev", "--console"]).contains("last words"), "its console is lost");
    signal("CONT", vmm);
    until("it answers", 60, || !lost());
    assert_eq!(home.must(&["exec", "dev", "--", "echo", "here"]), "here\n");
    assert_eq!(home.processes_of(ids.first().unwrap()).map(|(vmm, _)| vmm), Some(vmm), "another VMM");
    signal("STOP", vmm);
    home.must(&["rm", "dev"]);
    home.expect_nothing_left(&ids);
}

/// Most memory the server ever had, in KiB.
fn server_peak_kib(home: &Home) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", home.server().unwrap())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.split_whitespace().next().unwrap().parse().unwrap()
}

#[test]
fn a_command_that_prints_a_gibibyte_costs_no_memory() {
    let Some(home) = Home::open() else { return };
    home.must(&["create", "--name", "dev"]);
    let before = server_peak_kib(&home);
    let mut command = home.command(&["exec", "dev", "--", "head", "-c", "1073741824", "/dev/zero"]);
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    let (mut output, mut buffer, mut count) = (child.stdout.take().unwrap(), vec![0; 1 << 20], 0_u64);
    let begun = Instant::now();
    // A reader that comes late: what is printed waits in the guest.
    std::thread::sleep(Duration::from_secs(1));
    loop {
        match output.read(&mut buffer).unwrap() {
            0 => break,
            length => {
                assert!(buffer[..length].iter().all(|byte| *byte == 0));
                count += length as u64;
            }
        }
    }
    assert!(child.wait().unwrap().success());
    assert_eq!(count, 1 << 30);
    let grown = server_peak_kib(&home) - before;
    eprintln!("1 GiB in {:?}, the server grew by {grown} KiB", begun.elapsed());
    assert!(grown < 64 << 10, "the server grew by {grown} KiB");
    home.must(&["rm", "dev"]);
}

#[test]
fn a_fork_bomb_stays_in_its_command() {
    let Some(home) = Home::open() else { return };
    home.must(&["create", "--name", "dev"]);
    let bomb = "bomb() { bomb | bomb & }; bomb; sleep 60";
    let mut child = home.command(&["exec", "--timeout", "15s", "dev", "--", "sh", "-c", bomb]);
    let mut child = child.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let count = "ls -d /proc/[0-9]* | wc -l";
    let processes = || home.must(&["exec", "dev", "--", "sh", "-c", count]).trim().parse::<u32>().unwrap();
    // Every look is itself a command that is answered while the bomb goes off.
    until("the bomb goes off", 15, || processes() > 150);
    assert_eq!(child.wait().unwrap().code(), Some(124));
    // All are killed; their burial takes a moment.
    until("the bomb is cleared away", 30, || processes() < 100);
    assert_eq!(home.state("dev").0, "running");
    home.must(&["rm", "dev"]);
}

#[test]
fn output_survives_the_death_of_the_server() {
    let Some(home) = Home::open() else { return };
    home.must(&["create", "--name", "dev"]);
    let script = "import time\nfor i in range(3000):\n print('line', i, flush=True)\n time.sleep(0.001)";
    let process = home.must(&["exec", "-d", "dev", "--", "python3", "-c", script]);
    let server = home.server().unwrap();
    home.kill_server();
    let output = home.must(&["exec", "dev", "--attach", process.trim()]);
    let expected: Vec<String> = (0..3000).map(|number| format!("line {number}")).collect();
    assert!(output.lines().eq(expected.iter().map(String::as_str)), "{} lines came", output.lines().count());
    assert_ne!(home.server().unwrap(), server);
    home.must(&["rm", "dev"]);
}

#[test]
fn a_paused_vm_waits_and_goes_on() {
    let Some(home) = Home::open() else { return };
    home.must(&["create", "--name", "dev"]);
    let ids = home.ids();
    let process = home.must(&["exec", "-d", "dev", "--", "sh", "-c", "sleep 2; echo done"]);
    home.must(&["pause", "dev"]);
    assert_eq!(home.state("dev").0, "paused");
    let (exit, problem) = home.must_fail(&["exec", "dev", "--", "true"]);
    assert_eq!(exit, 125);
    assert_eq!(problem["remedies"][0]["action"], "resume_vm", "{problem}");
    // It stays paused, and unharmed, whatever becomes of the server.
    home.kill_server();
    assert_eq!(home.state("dev").0, "paused");
    home.must(&["resume", "dev"]);
    assert_eq!(home.must(&["exec", "dev", "--attach", process.trim()]), "done\n");
    home.must(&["pause", "dev"]);
    home.must(&["rm", "dev"]);
    home.expect_nothing_left(&ids);
}

#[test]
fn a_guest_that_powers_off_or_restarts_does_so() {
    let Some(home) = Home::open() else { return };
    home.must(&["create", "--name", "dev"]);
    let ids = home.ids();
    home.must(&["stop", "dev"]);
    assert_eq!(home.state("dev").0, "stopped");
    home.must(&["start", "dev"]);
    let first = home.must(&["exec", "dev", "--", "cat", "/proc/sys/kernel/random/boot_id"]);
    // The kernel restarts at once, without asking the agent.
    let _ = home.run(&[
        "exec",
        "dev",
        "--",
        "python3",
        "-c",
        "import ctypes; ctypes.CDLL(None).reboot(0x1234567)",
    ]);
    until("it has booted again", 60, || {
        let output = home.run(&["exec", "dev", "--", "cat", "/proc/sys/kernel/random/boot_id"]);
        output.status.success() && text(&output.stdout) != first
    });
    home.must(&["rm", "dev"]);
    home.expect_nothing_left(&ids);
}
