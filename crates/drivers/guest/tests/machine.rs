//! The agent as PID 1 of a real machine (QEMU with TCG).

mod common;

use std::time::{Duration, Instant};

use common::machine::{Parts, TestMachine};
use common::{command, connect, run, shell};
use microvm_ports::guest::Identity;
use microvm_types::guest::ShutdownMode;

fn identity() -> Identity {
    Identity {
        host_name: "first-light".to_owned(),
        machine_id: "0123456789abcdef0123456789abcdef".to_owned(),
        entropy: [7; 32],
        environment: vec![("GREETING".to_owned(), "hello".to_owned())],
        ..Identity::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_boots_runs_commands_and_powers_off() {
    let Some(parts) = Parts::find() else { return };
    let mut machine = TestMachine::boot(&parts);
    let started = Instant::now();
    let guest = connect(&machine.endpoint, 1, &identity()).await;
    eprintln!("boot to identity confirmed: {:?} (agent: {} ms)", started.elapsed(), guest.agent().boot_ms);
    let (out, err, status) = run(&*guest, &shell("echo $GREETING $$; hostname; cat /etc/machine-id; id; echo oops >&2; exit 3")).await;
    eprintln!("{out}{err}{}", machine.console());
    assert!(out.contains("hello") && out.contains("first-light") && out.contains("0123456789abcdef"));
    assert_eq!((err.as_str(), status.code), ("oops\n", Some(3)));
    let (out, ..) = run(&*guest, &command(&["python3", "-c", "print(6*7)"])).await;
    assert_eq!(out, "42\n");

    // The channel can be lost and found again.
    guest.close();
    drop(guest);
    let guest = connect(&machine.endpoint, 2, &identity()).await;
    let mut pings = Vec::new();
    let mut trues = Vec::new();
    for _ in 0..30 {
        pings.push(guest.ping().await.unwrap());
        let started = Instant::now();
        run(&*guest, &command(&["true"])).await;
        trues.push(started.elapsed());
    }
    let spawns = guest.measure_spawn("/bin/true", 30).await.unwrap();
    for (name, mut times) in [("ping", pings), ("exec true", trues), ("spawn in guest", spawns)] {
        times.sort_unstable();
        eprintln!("{name}: p50 {:?} p90 {:?}", times[times.len() / 2], times[times.len() * 9 / 10]);
    }
    guest.shutdown(ShutdownMode::PowerOff, Duration::from_secs(2)).await.unwrap();
    let ended = tokio::time::timeout(Duration::from_secs(30), machine.child.wait()).await;
    assert!(ended.is_ok(), "the machine did not end: {}", machine.console());
}
