//! The agent as PID 1 of a real machine (QEMU with TCG).
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "tests fail by panicking and say why they skip")]

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
    let (out, err, status) =
        run(&*guest, &shell("echo $GREETING $$; hostname; cat /etc/machine-id; id; echo oops >&2; exit 3"))
            .await;
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
    let spawns = guest.measuring().unwrap().measure_spawn("/bin/true", 30).await.unwrap();
    for (name, mut times) in [("ping", pings), ("exec true", trues), ("spawn in guest", spawns)] {
        times.sort_unstable();
        eprintln!("{name}: p50 {:?} p90 {:?}", times[times.len() / 2], times[times.len() * 9 / 10]);
    }
    guest.shutdown(ShutdownMode::PowerOff, Duration::from_secs(2)).await.unwrap();
    let ended = tokio::time::timeout(Duration::from_secs(30), machine.child.wait()).await;
    assert!(ended.is_ok(), "the machine did not end: {}", machine.console());
}

#[tokio::test(flavor = "multi_thread")]
async fn bombs_garbage_and_half_frames_leave_the_agent_working() {
    let Some(parts) = Parts::find() else { return };
    let machine = TestMachine::boot(&parts);
    let guest = connect(&machine.endpoint, 1, &identity()).await;
    let mut bomb = shell("bomb() { bomb | bomb & }; bomb; sleep 100");
    bomb.timeout_ms = Some(3000);
    let process = guest.exec(&bomb).await.unwrap();
    // While it goes off, another command is answered.
    let (out, _, status) = run(&*guest, &command(&["/bin/echo", "still here"])).await;
    assert_eq!((out.as_str(), status.code), ("still here\n", Some(0)));
    let (_, _, status) = common::finish(process).await;
    assert!(status.timed_out, "{status:?}");
    // All were killed at once; the kernel takes its time to bury hundreds of them under emulation.
    let mut left = u32::MAX;
    for _ in 0..50 {
        let (out, ..) = run(&*guest, &shell("ls /proc | grep -c '^[0-9]'")).await;
        left = out.trim().parse().unwrap();
        if left < 100 {
            break;
        }
    }
    assert!(left < 100, "{left} processes are left");
    guest.close();
    drop(guest);

    let microvm_ports::guest::GuestEndpoint::UnixSocket(path) = &machine.endpoint else { unreachable!() };
    let half =
        microvm_protocol::Frame::new(microvm_protocol::FrameKind::Data, 1, vec![1; 60_000].into()).header();
    for (epoch, rubbish) in (2..).zip([
        &b"GET / HTTP/1.0\r\n\r\n"[..],
        &half,
        &microvm_protocol::PREAMBLE[..20],
        &microvm_protocol::PREAMBLE,
    ]) {
        let mut socket = tokio::net::UnixStream::connect(path).await.unwrap();
        tokio::io::AsyncWriteExt::write_all(&mut socket, rubbish).await.unwrap();
        drop(socket);
        let guest = connect(&machine.endpoint, epoch, &identity()).await;
        let (out, ..) = run(&*guest, &command(&["echo", "again"])).await;
        assert_eq!(out, "again\n");
        guest.close();
    }
}

/// Prints figures; `microvm bench` holds them against their limits.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement, not a test"]
async fn measure() {
    let Some(parts) = Parts::find() else { return };
    let machine = TestMachine::boot(&parts);
    let guest = connect(&machine.endpoint, 1, &identity()).await;
    const SIZE: u64 = 256 << 20;
    #[expect(clippy::cast_precision_loss, reason = "figures for people")]
    let rate = |time: Duration| SIZE as f64 / 1e6 / time.as_secs_f64();
    let content: Vec<Vec<u8>> = common::noise(16 << 20).chunks(64 << 10).map(<[u8]>::to_vec).collect();
    for round in 0..3 {
        let (to, from) = guest.measuring().unwrap().measure_channel(SIZE, SIZE).await.unwrap();
        let parts = (0..16).flat_map(|_| content.clone()).collect();
        let started = Instant::now();
        guest.write_file(b"/root/big", &Default::default(), common::content_of(parts)).await.unwrap();
        let push = started.elapsed();
        let started = Instant::now();
        let (_, mut data) = guest.read_file(b"/root/big", 0, None).await.unwrap();
        while let Some(part) = futures::StreamExt::next(&mut data).await {
            part.unwrap();
        }
        let pull = started.elapsed();
        eprintln!(
            "round {round}: raw to {:.0} from {:.0}, push {:.0} ({:.2}), pull {:.0} MB/s ({:.2})",
            rate(to),
            rate(from),
            rate(push),
            rate(push) / rate(to),
            rate(pull),
            rate(pull) / rate(from)
        );
    }
    let mut trues = Vec::new();
    for _ in 0..40 {
        let started = Instant::now();
        run(&*guest, &command(&["true"])).await;
        trues.push(started.elapsed());
    }
    let mut spawns = guest.measuring().unwrap().measure_spawn("/usr/bin/true", 40).await.unwrap();
    trues.sort_unstable();
    spawns.sort_unstable();
    eprintln!(
        "exec true p50 {:?} p10 {:?}; spawn p50 {:?} p10 {:?}",
        trues[20], trues[4], spawns[20], spawns[4]
    );
    let (out, ..) = run(&*guest, &shell("cat /sys/devices/system/clocksource/clocksource0/current_clocksource; cat /sys/fs/cgroup/microvm/pids.max; time -p true; dmesg | grep -iE 'tsc|clocksource' | head")).await;
    eprintln!("{out}");
}
