//! Processes, against an agent on this host.
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "tests fail by panicking and say why they skip")]

mod common;

use std::time::{Duration, Instant};

use common::{HostAgent, command, connect, finish, run, shell};
use futures::StreamExt as _;
use microvm_ports::GuestError;
use microvm_ports::guest::{Identity, ProcessEvent, ProcessInput};
use microvm_types::ErrorKind;
use microvm_types::exec::{ExecRequest, OutputOffsets, TerminalSize};

#[tokio::test]
async fn output_status_input_and_environment() {
    let Some(agent) = HostAgent::start().await else { return };
    let guest = agent.connect().await;
    let mut request = shell("cat; echo \"$WORD in $PWD\" >&2; exit 7");
    request.stdin = true;
    request.environment.insert("WORD".to_owned(), "here".to_owned());
    request.working_directory = Some("/usr".to_owned());
    let process = guest.exec(&request).await.unwrap();
    process.input.send(ProcessInput::Stdin("one\n".into())).await.unwrap();
    process.input.send(ProcessInput::Stdin("two\n".into())).await.unwrap();
    process.input.send(ProcessInput::CloseStdin).await.unwrap();
    let (out, err, status) = finish(process).await;
    assert_eq!((&*out, &*err, status.code), (&b"one\ntwo\n"[..], &b"here in /usr\n"[..], Some(7)));
    // Without input the end of file comes at once; a signal is not an exit code.
    let (_, _, status) = run(&*guest, &shell("cat; kill -9 $$")).await;
    assert_eq!((status.code, status.signal), (None, Some(9)));
}

#[tokio::test]
async fn what_cannot_start_is_refused_with_the_reason() {
    let Some(agent) = HostAgent::start().await else { return };
    let guest = agent.connect().await;
    let refused = async |request| match guest.exec(&request).await {
        Err(GuestError::Refused { kind, message }) => (kind, message),
        other => panic!("{other:?}"),
    };
    let (kind, message) = refused(command(&["no-such-program"])).await;
    assert!(kind == ErrorKind::NotFound && message.contains("no-such-program"), "{message}");
    let mut request = command(&["true"]);
    request.working_directory = Some("/no/such/place".to_owned());
    assert_eq!(refused(request).await.0, ErrorKind::NotFound);
    let mut request = command(&["true"]);
    request.user = Some("nobody-like-that".to_owned());
    assert_eq!(refused(request).await.0, ErrorKind::NotFound);
    assert_eq!(refused(command(&[])).await.0, ErrorKind::Invalid);
    assert_eq!(refused(command(&["/etc/passwd"])).await.0, ErrorKind::Forbidden);
}

/// Nothing is run anywhere else than the image says, unless the request says so.
#[tokio::test]
async fn the_working_directory_of_an_image_is_insisted_on() {
    let Some(agent) = HostAgent::start().await else { return };
    let pwd = command(&["pwd"]);
    for (epoch, directory, expected) in [(1, "/usr/bin", "/usr/bin"), (2, "usr/bin", "/usr/bin")] {
        let identity = Identity { working_directory: directory.to_owned(), ..Identity::default() };
        let guest = connect(&agent.endpoint, epoch, &identity).await;
        assert_eq!(run(&*guest, &pwd).await.0, format!("{expected}\n"), "{directory}");
    }
    let identity = Identity { working_directory: "/etc/passwd".to_owned(), ..Identity::default() };
    let guest = connect(&agent.endpoint, 3, &identity).await;
    match guest.exec(&pwd).await {
        Err(GuestError::Refused { kind: ErrorKind::Invalid, message }) => {
            assert!(message.contains("`/etc/passwd` is no directory"), "{message}");
        }
        other => panic!("{:?}", other.map(|_| ())),
    }
    let elsewhere = ExecRequest { working_directory: Some("/usr".to_owned()), ..pwd };
    assert_eq!(run(&*guest, &elsewhere).await.0, "/usr\n");
}

#[tokio::test]
async fn a_terminal_has_a_size_and_control_c_works() {
    let Some(agent) = HostAgent::start().await else { return };
    let guest = agent.connect().await;
    let mut request = shell("stty size; echo ready; sleep 100; stty size; echo end");
    request.command[2] =
        "trap 'stty size; exit 5' INT; stty size; tty >/dev/null && echo ready; while :; do sleep 0.05; done"
            .to_owned();
    request.terminal = Some(TerminalSize { columns: 100, rows: 30 });
    let mut process = guest.exec(&request).await.unwrap();
    let mut text = String::new();
    while !text.contains("ready") {
        match process.events.next().await.unwrap() {
            ProcessEvent::Stdout(bytes) => text.push_str(&String::from_utf8_lossy(&bytes)),
            other => panic!("{other:?}"),
        }
    }
    assert!(text.contains("30 100"), "{text}");
    process.input.send(ProcessInput::Resize(TerminalSize { columns: 90, rows: 20 })).await.unwrap();
    process.input.send(ProcessInput::Stdin("\x03".into())).await.unwrap();
    let (out, _, status) = finish(process).await;
    assert!(String::from_utf8_lossy(&out).contains("20 90"), "{}", String::from_utf8_lossy(&out));
    assert_eq!(status.code, Some(5));
}

#[tokio::test]
async fn a_timeout_kills_everything_that_was_started() {
    let Some(agent) = HostAgent::start().await else { return };
    let guest = agent.connect().await;
    let mut request = shell("(trap '' TERM; exec sleep 4321.5) & sleep 4321.5");
    request.timeout_ms = Some(200);
    let (_, _, status) = run(&*guest, &request).await;
    assert!(status.timed_out && status.shell_code() == 124);
    let (out, ..) = run(&*guest, &shell("ps ax -o args | grep -c '^[s]leep 4321.5' || true")).await;
    assert_eq!(out.trim(), "0");
}

#[tokio::test]
async fn background_children_do_not_hold_up_the_end() {
    let Some(agent) = HostAgent::start().await else { return };
    let guest = agent.connect().await;
    let started = Instant::now();
    let (out, _, status) = run(&*guest, &shell("sleep 5 & echo done")).await;
    assert_eq!((out.as_str(), status.code), ("done\n", Some(0)));
    assert!(started.elapsed() < Duration::from_secs(4));
}

#[tokio::test]
async fn much_output_flows_in_order_and_a_ping_is_not_held_up_by_it() {
    let Some(agent) = HostAgent::start().await else { return };
    let guest = agent.connect().await;
    let mut process = guest.exec(&command(&["seq", "1", "3000000"])).await.unwrap();
    // Nobody reads now: the process is held up, the channel is not.
    assert!(guest.ping().await.unwrap() < Duration::from_secs(5));
    let (other, ..) = run(&*guest, &command(&["echo", "meanwhile"])).await;
    assert_eq!(other, "meanwhile\n");
    let (mut next, mut rest) = (1u64, Vec::new());
    loop {
        match process.events.next().await.unwrap() {
            ProcessEvent::Stdout(bytes) => {
                rest.extend_from_slice(&bytes);
                let end = rest.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
                for line in rest[..end].split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
                    assert_eq!(std::str::from_utf8(line).unwrap().parse::<u64>().unwrap(), next);
                    next += 1;
                }
                rest.drain(..end);
            }
            ProcessEvent::Exited(status) => break assert_eq!(status.code, Some(0)),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(next, 3_000_001);
}

#[tokio::test]
async fn a_process_survives_its_reader_and_its_channel() {
    let Some(agent) = HostAgent::start().await else { return };
    let guest = agent.connect().await;
    let process = guest.exec(&shell("echo first; sleep 0.3; echo second; exit 4")).await.unwrap();
    let id = process.id.clone();
    drop(process);
    guest.close();
    drop(guest);
    let guest = agent.connect().await;
    let process = guest.attach(&id, OutputOffsets::default()).await.unwrap();
    assert_eq!(process.stdout_offset, 0);
    let (out, _, status) = finish(process).await;
    assert_eq!((&*out, status.code), (&b"first\nsecond\n"[..], Some(4)));
    // It is remembered, from any offset.
    let process = guest.attach(&id, OutputOffsets { stdout: Some(6), stderr: None }).await.unwrap();
    assert_eq!(finish(process).await.0, b"second\n");
    let known = guest.processes().await.unwrap();
    assert!(known.iter().any(|known| known.id == id && known.stdout_bytes == 13 && known.exit.is_some()));
}

#[tokio::test]
async fn detached_processes_lose_their_oldest_output_others_wait() {
    let Some(agent) = HostAgent::start().await else { return };
    let guest = agent.connect().await;
    let mut request = shell("seq 1 400000; echo end >&2");
    request.detach = true;
    let detached = guest.exec(&request).await.unwrap().id;
    request.detach = false;
    let held = guest.exec(&request).await.unwrap().id;
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let known = guest.processes().await.unwrap();
        if known.iter().any(|known| known.id == detached && known.exit.is_some()) {
            break;
        }
        assert!(Instant::now() < deadline, "{known:?}");
        // There is no event for what nobody reads.
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let process = guest.attach(&detached, OutputOffsets { stdout: Some(0), stderr: None }).await.unwrap();
    assert!(process.stdout_offset > 0);
    let (out, ..) = finish(process).await;
    assert!(out.ends_with(b"400000\n"));
    let process = guest.attach(&held, OutputOffsets { stdout: Some(0), stderr: None }).await.unwrap();
    assert_eq!(process.stdout_offset, 0);
    let (out, ..) = finish(process).await;
    assert!(out.starts_with(b"1\n2\n") && out.ends_with(b"400000\n"));
}

#[tokio::test]
async fn signals_reach_the_group_and_a_hung_up_agent_rests() {
    let Some(agent) = HostAgent::start().await else { return };
    let guest = agent.connect().await;
    let process = guest.exec(&shell("sleep 1000 | sleep 1000")).await.unwrap();
    guest.signal(&process.id, 15).await.unwrap();
    let (_, _, status) = finish(process).await;
    assert_eq!(status.signal, Some(15));
    guest.close();
    drop(guest);
    let before = agent.cpu_ticks();
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(agent.cpu_ticks() - before < 10, "the agent is busy although nobody is connected");
}
