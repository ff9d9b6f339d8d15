//! Checks of running commands in a guest.

use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::StreamExt;
use microvm_ports::guest::{ProcessEvent, ProcessInput};
use microvm_types::exec::{ExecRequest, ExitStatus, OutputOffsets, TerminalSize};
use microvm_types::{ErrorKind, ProcessId};

use super::{Scene, collect, command, refusal, shell};
use crate::{Must, Suite};

const fn code(code: u32) -> ExitStatus {
    ExitStatus { code: Some(code), signal: None, timed_out: false }
}

pub(super) async fn run(suite: &mut Suite, scene: &Scene) {
    suite.check("exit codes come as they are", exit_codes(scene)).await;
    suite.check("stdout and stderr are apart and complete", streams(scene)).await;
    suite.check("stdin reaches the command and its end is seen", stdin(scene)).await;
    suite.check("without stdin the command reads end-of-file", no_stdin(scene)).await;
    suite.check("input after the end is dropped", late_input(scene)).await;
    suite.check("environment, directory and user are set", surroundings(scene)).await;
    suite.check("arguments arrive byte for byte", arguments(scene)).await;
    suite.check("a start that cannot be is refused with a reason", refused_starts(scene)).await;
    suite.check("signals are delivered and told", signals(scene)).await;
    suite.check("a time-out kills the whole group", timeout(scene)).await;
    suite.check("two commands at once do not wait for each other", two_at_once(scene)).await;
    suite.check("a slow reader gets all of a big output", big_output(scene)).await;
    suite.check("a held-up command does not hold up others", held_up(scene)).await;
    suite.check("output is taken up again from an offset", attach(scene)).await;
    suite.check("a new reader takes over from the old one", take_over(scene)).await;
    suite.check("looking at output disturbs nobody", look(scene)).await;
    suite.check("a detached command is not held up", detached(scene)).await;
    suite.check("a terminal has its size", terminal(scene)).await;
    suite.check("processes are listed with how they ended", listed(scene)).await;
    suite.check("what the service runs by itself is forgotten", unlisted(scene)).await;
}

async fn exit_codes(scene: &Scene) {
    assert_eq!(scene.run(&command(&["true"])).await.exit, code(0));
    assert_eq!(scene.run(&command(&["false"])).await.exit, code(1));
    assert_eq!(scene.run(&shell("exit 57")).await.exit, code(57));
    assert_eq!(scene.run(&shell("exit 255")).await.exit, code(255));
}

async fn streams(scene: &Scene) {
    let finished = scene.run(&shell("echo one; echo two >&2; echo three; exit 3")).await;
    assert_eq!(finished.stdout, b"one\nthree\n");
    assert_eq!(finished.stderr, b"two\n");
    assert_eq!(finished.exit, code(3));
}

async fn stdin(scene: &Scene) {
    let request = ExecRequest { stdin: true, ..command(&["cat"]) };
    let handle = scene.start(&request).await;
    for piece in ["first ", "", "second\n", "\0binary\u{7f}"] {
        let data = Bytes::from_static(piece.as_bytes());
        handle.input.send(ProcessInput::Stdin(data)).await.must("sending input");
    }
    handle.input.send(ProcessInput::CloseStdin).await.must("closing input");
    let finished = collect(handle).await;
    assert_eq!(finished.stdout, b"first second\n\0binary\x7f");
    assert_eq!(finished.exit, code(0));
}

async fn no_stdin(scene: &Scene) {
    let finished = scene.run(&command(&["cat"])).await;
    assert_eq!((finished.stdout, finished.exit), (Vec::new(), code(0)));
}

async fn late_input(scene: &Scene) {
    let mut handle = scene.start(&ExecRequest { stdin: true, ..command(&["true"]) }).await;
    while let Some(event) = handle.events.next().await {
        if let ProcessEvent::Exited(exit) = event {
            assert_eq!(exit, code(0));
        }
    }
    let data = Bytes::from_static(b"too late");
    handle.input.send(ProcessInput::Stdin(data)).await.must("sending input to an ended process");
}

async fn surroundings(scene: &Scene) {
    let mut request = shell("echo \"$FROM_IDENTITY:$FROM_REQUEST\"; pwd; id -u");
    assert_eq!(scene.run(&request).await.text(), "yes:\n/root\n0");
    request.environment.insert("FROM_REQUEST".to_owned(), "a b".to_owned());
    request.environment.insert("FROM_IDENTITY".to_owned(), "replaced".to_owned());
    request.working_directory = Some("/tmp".to_owned());
    request.user = Some("65534".to_owned());
    assert_eq!(scene.run(&request).await.text(), "replaced:a b\n/tmp\n65534");
    request.user = Some("nobody".to_owned());
    assert_eq!(scene.run(&request).await.text(), "replaced:a b\n/tmp\n65534");
}

async fn arguments(scene: &Scene) {
    let finished = scene.run(&command(&["echo", "-n", "a  b", "$HOME", "'\"\\", "ü\n*"])).await;
    assert_eq!(finished.stdout, "a  b $HOME '\"\\ ü\n*".as_bytes());
}

async fn refused_starts(scene: &Scene) {
    let mut wrong = vec![command(&[]), command(&["no-such-program-anywhere"])];
    wrong
        .push(ExecRequest { working_directory: Some("/no/such/directory".to_owned()), ..command(&["true"]) });
    wrong.push(ExecRequest { user: Some("no-such-user".to_owned()), ..command(&["true"]) });
    for request in wrong {
        match scene.guest.exec(&request).await {
            Err(error) => {
                refusal(&error);
            }
            Ok(_) => panic!("{request:?} was started"),
        }
    }
}

async fn signals(scene: &Scene) {
    let finished = scene.run(&shell("kill -9 $$")).await;
    assert_eq!(finished.exit, ExitStatus { code: None, signal: Some(9), timed_out: false });
    let handle = scene.start(&command(&["sleep", "600"])).await;
    handle.input.send(ProcessInput::Signal(15)).await.must("sending a signal");
    assert_eq!(collect(handle).await.exit.signal, Some(15));
    let handle = scene.start(&command(&["sleep", "600"])).await;
    scene.guest.signal(&handle.id, 9).await.must("sending a signal by id");
    assert_eq!(collect(handle).await.exit.signal, Some(9));
    let unknown = ProcessId::from_parts(1, u64::MAX);
    let error = scene.guest.signal(&unknown, 9).await.must_fail("sending a signal to nobody");
    assert_eq!(refusal(&error), ErrorKind::NotFound);
}

async fn timeout(scene: &Scene) {
    let begun = Instant::now();
    // The shell waits for its child, which must go too: a number of seconds that nobody else uses marks it.
    let finished =
        scene.run(&ExecRequest { timeout_ms: Some(300), ..shell("echo begun; sleep 98765; true") }).await;
    assert!(finished.exit.timed_out, "{:?}", finished.exit);
    assert_eq!(finished.exit.shell_code(), 124);
    assert_eq!(finished.text(), "begun");
    assert!(begun.elapsed() >= Duration::from_millis(290), "it ended after {:?}", begun.elapsed());
    let left = scene.guest.guest_processes().await.must("asking for processes");
    let left: Vec<_> = left.iter().filter(|process| process.command.contains("98765")).collect();
    assert!(left.is_empty(), "still there: {left:?}");
}

async fn two_at_once(scene: &Scene) {
    let slow = scene.start(&command(&["sleep", "600"])).await;
    for number in 0..10 {
        let finished = scene.run(&command(&["echo", &number.to_string()])).await;
        assert_eq!(finished.text(), number.to_string());
    }
    scene.guest.signal(&slow.id, 9).await.must("ending the slow one");
    collect(slow).await;
}

async fn big_output(scene: &Scene) {
    const SIZE: usize = 24 << 20;
    let mut handle = scene.start(&command(&["head", "-c", &SIZE.to_string(), "/dev/zero"])).await;
    let (mut seen, mut events) = (0, 0_u32);
    loop {
        match handle.events.next().await {
            Some(ProcessEvent::Stdout(data)) => {
                assert!(data.iter().all(|byte| *byte == 0), "wrong bytes near {seen}");
                seen += data.len();
            }
            Some(ProcessEvent::Exited(exit)) => {
                assert_eq!(exit, code(0));
                break;
            }
            other => panic!("after {seen} bytes came {other:?}"),
        }
        events += 1;
        if events % 64 == 0 {
            // Being slow is what is tested here.
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
    assert_eq!(seen, SIZE);
}

async fn held_up(scene: &Scene) {
    // Nobody reads it: it must be held up, and nothing else with it.
    let endless = scene.start(&command(&["yes"])).await;
    for _ in 0..5 {
        scene.guest.ping().await.must("pinging beside a held-up command");
        assert_eq!(scene.run(&command(&["echo", "free"])).await.text(), "free");
    }
    scene.guest.signal(&endless.id, 9).await.must("ending it");
    assert_eq!(collect(endless).await.exit.signal, Some(9));
}

async fn attach(scene: &Scene) {
    let request =
        ExecRequest { stdin: true, ..shell("echo 0123456789; echo error >&2; read x; echo after $x") };
    let mut handle = scene.start(&request).await;
    let mut seen = Vec::new();
    while seen.len() < 11 {
        match handle.events.next().await {
            Some(ProcessEvent::Stdout(data)) => seen.extend_from_slice(&data),
            Some(ProcessEvent::Stderr(_)) => {}
            other => panic!("unexpected: {other:?}"),
        }
    }
    let id = handle.id.clone();
    drop(handle);
    let offsets = OutputOffsets { stdout: Some(4), stderr: None };
    let handle = scene.guest.attach(&id, offsets).await.must("attaching");
    assert_eq!((handle.id.clone(), handle.stdout_offset, handle.stderr_offset), (id.clone(), 4, 0));
    handle.input.send(ProcessInput::Stdin(Bytes::from_static(b"this\n"))).await.must("sending input");
    let finished = collect(handle).await;
    assert_eq!(finished.stdout, b"456789\nafter this\n");
    assert_eq!(finished.stderr, b"error\n");
    let again = scene.guest.attach(&id, OutputOffsets::default()).await.must("attaching after the end");
    let finished = collect(again).await;
    assert_eq!(finished.stdout, b"0123456789\nafter this\n");
    assert_eq!(finished.exit, code(0));
    let unknown = ProcessId::from_parts(1, u64::MAX);
    match scene.guest.attach(&unknown, OutputOffsets::default()).await {
        Err(error) => assert_eq!(refusal(&error), ErrorKind::NotFound),
        Ok(_) => panic!("it attached to nobody"),
    }
}

async fn take_over(scene: &Scene) {
    let mut first = scene.start(&command(&["sleep", "600"])).await;
    let second = scene.guest.attach(&first.id, OutputOffsets::default()).await.must("attaching");
    match first.events.next().await {
        None | Some(ProcessEvent::Lost(_)) => {}
        Some(other) => panic!("the first reader got {other:?}"),
    }
    scene.guest.signal(&second.id, 15).await.must("ending it");
    assert_eq!(collect(second).await.exit.signal, Some(15));
}

async fn detached(scene: &Scene) {
    let words = ["head", "-c", "8388608", "/dev/zero"];
    let handle = scene.start(&ExecRequest { detach: true, ..command(&words) }).await;
    let id = handle.id.clone();
    drop(handle);
    // Its end is awaited by a second command, not by reading: reading would let a held-up one go on.
    loop {
        let known = scene.guest.processes().await.must("listing processes");
        let process = known.iter().find(|process| process.id == id);
        let process = process.unwrap_or_else(|| panic!("the process is not known any more"));
        if process.exit.is_some() {
            assert_eq!((process.exit, process.stdout_bytes), (Some(code(0)), 8 << 20));
            break;
        }
        scene.run(&command(&["sleep", "0.05"])).await;
    }
    let handle =
        scene.guest.attach(&id, OutputOffsets { stdout: Some(0), stderr: None }).await.must("attaching");
    let begin = handle.stdout_offset;
    let finished = collect(handle).await;
    assert_eq!(begin + finished.stdout.len() as u64, 8 << 20, "the newest output is not what was kept");
}

async fn terminal(scene: &Scene) {
    let size = TerminalSize { columns: 101, rows: 31 };
    let request = ExecRequest {
        terminal: Some(size),
        stdin: true,
        ..shell("stty size; echo hello >&2; read x; stty size")
    };
    let handle = scene.start(&request).await;
    handle.input.send(ProcessInput::Resize(TerminalSize { columns: 77, rows: 7 })).await.must("resizing");
    handle.input.send(ProcessInput::Stdin(Bytes::from_static(b"\n"))).await.must("typing");
    let finished = collect(handle).await;
    let text = finished.text();
    assert!(text.contains("hello") && finished.stderr.is_empty(), "stderr was not merged: {finished:?}");
    assert!(text.trim_end().ends_with("7 77"), "the resize did not arrive: {text:?}");
    assert_eq!(finished.exit, code(0));
}

async fn listed(scene: &Scene) {
    let living = scene.start(&command(&["sleep", "601"])).await;
    let ended = scene.start(&shell("echo 12345; exit 4")).await;
    let ended_id = ended.id.clone();
    collect(ended).await;
    let known = scene.guest.processes().await.must("listing processes");
    let find = |id: &ProcessId| known.iter().find(|process| process.id == *id).cloned();
    let found = find(&living.id).unwrap_or_else(|| panic!("the living one is missing"));
    assert_eq!((found.pid, found.exit, found.command.join(" ")), (living.pid, None, "sleep 601".to_owned()));
    let found = find(&ended_id).unwrap_or_else(|| panic!("the ended one is missing"));
    assert_eq!((found.exit, found.stdout_bytes, found.stderr_bytes), (Some(code(4)), 6, 0));
    scene.guest.signal(&living.id, 9).await.must("ending it");
    collect(living).await;
}

async fn unlisted(scene: &Scene) {
    let handle = scene.start(&ExecRequest { unlisted: true, ..shell("echo 12345") }).await;
    let id = handle.id.clone();
    assert_eq!(collect(handle).await.text(), "12345");
    let known = scene.guest.processes().await.must("listing processes");
    assert!(known.iter().all(|process| process.id != id), "it is listed");
}

/// Looks at a process that somebody else reads: both get everything, and what is not followed ends by itself.
async fn look(scene: &Scene) {
    let script = "echo one; echo two >&2; cat";
    let request = ExecRequest { stdin: true, ..command(&["sh", "-c", script]) };
    let mut reader = scene.start(&request).await;
    let mut seen = Vec::new();
    while seen.iter().filter(|byte| **byte == b'\n').count() < 2 {
        match reader.events.next().await {
            Some(ProcessEvent::Stdout(data) | ProcessEvent::Stderr(data)) => seen.extend_from_slice(&data),
            other => panic!("the reader got {other:?}"),
        }
    }
    let from = OutputOffsets::default();
    let mut glance = scene.guest.read_output(&reader.id, from, false).await.must("looking");
    let mut kept = Vec::new();
    loop {
        match glance.events.next().await {
            Some(ProcessEvent::Stdout(data) | ProcessEvent::Stderr(data)) => kept.extend_from_slice(&data),
            Some(ProcessEvent::UpToDate) => break,
            other => panic!("who looks got {other:?}"),
        }
    }
    assert!(glance.events.next().await.is_none(), "something came after the end");
    kept.sort_unstable();
    seen.sort_unstable();
    assert_eq!(kept, seen);
    let following = scene.guest.read_output(&reader.id, from, true).await.must("following");
    let listed = scene.guest.processes().await.must("listing");
    let listed = listed.iter().find(|process| process.id == reader.id);
    assert!(listed.is_some_and(|listed| !listed.detached && listed.exit.is_none()));
    reader.input.send(ProcessInput::Stdin("three\n".into())).await.must("answering");
    reader.input.send(ProcessInput::CloseStdin).await.must("closing input");
    let (reader, following) = (collect(reader).await, collect(following).await);
    assert_eq!(reader.stdout, b"three\n", "the reader goes on where it was");
    assert_eq!((following.stdout, following.stderr), (b"one\nthree\n".to_vec(), b"two\n".to_vec()));
    assert_eq!((reader.exit, following.exit), (code(0), code(0)));
}
