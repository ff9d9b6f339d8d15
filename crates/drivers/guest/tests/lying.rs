//! A fake agent that lies: whatever it answers, or does not, the host has an error in time, holds little, and other guests
//! go on.
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "tests fail by panicking and say why they skip")]

mod common;

use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use common::content_of;
use common::peer::Host;
use common::{bytes_of, shell};
use futures::StreamExt as _;
use microvm_ports::guest::{CloseReason, Guest, Identity, ProcessEvent};
use microvm_ports::{GuestError, Holes};
use microvm_protocol::FrameKind;
use microvm_protocol::messages::{
    Configured, Empty, Exited, GuestProcess, GuestProcesses, HelloReply, Measured, NotStarted, Part, Process,
    Processes, Reply, Started, Stat, Stats, System, Written,
};
use microvm_types::ProcessId;
use microvm_types::exec::OutputOffsets;
use microvm_types::files::WriteOptions;
use microvm_types::guest::ShutdownMode;
use prost::Message as _;

/// Longer than any limit of these tests.
const LONG: Duration = Duration::from_secs(20);

fn impatient() -> Host {
    let mut host = Host::new();
    // A step of a transfer has five times as long, work sixty times.
    host.config.request_timeout = Duration::from_millis(40);
    host
}

type Call = (&'static str, Pin<Box<dyn Future<Output = Result<(), GuestError>> + Send>>);

/// Every request there is.
fn calls(guest: &Arc<dyn Guest>) -> Vec<Call> {
    let id = ProcessId::from_parts(1, 2);
    macro_rules! calls {
        ($($name:ident($($argument:expr),*)),* $(,)?) => {
            vec![$({
                let (guest, id) = (Arc::clone(guest), id.clone());
                let call = async move {
                    let _ = &id;
                    guest.$name($($argument),*).await.map(drop)
                };
                (stringify!($name), Box::pin(call) as Pin<Box<dyn Future<Output = _> + Send>>)
            }),*]
        };
    }
    let mut all: Vec<Call> = calls![
        identify(2, &Identity::default()),
        tell_time(),
        exec(&shell("true")),
        processes(),
        stat(b"/x"),
        list(b"/x", 1),
        make_directory(b"/x", 0o755, false, None),
        rename(b"/x", b"/y"),
        remove(b"/x", true),
        watch(b"/x", true),
        write_file(b"/x", &WriteOptions::default(), content_of(vec![vec![1; 100]])),
        push_archive(b"/x", None, bytes_of(vec![vec![1; 4 << 20]])),
        pull_archive(b"/x", &[], Holes::Zeros),
        read_file(b"/x", 0, None),
        connect_port(80),
        hash_file(b"/x"),
        system_info(),
        guest_processes(),
        health(),
        shutdown(ShutdownMode::PowerOff, Duration::ZERO),
    ];
    let (one, two, three) = (Arc::clone(guest), Arc::clone(guest), Arc::clone(guest));
    let (first, second, third) = (id.clone(), id.clone(), id);
    let from = OutputOffsets::default();
    all.push(("attach", Box::pin(async move { one.attach(&first, from).await.map(drop) })));
    all.push(("read_output", Box::pin(async move { two.read_output(&second, from, false).await.map(drop) })));
    let measured = Arc::clone(guest);
    all.push((
        "measure_channel",
        Box::pin(
            async move { measured.measuring().unwrap().measure_channel(1 << 20, 1 << 20).await.map(drop) },
        ),
    ));
    let measured = Arc::clone(guest);
    all.push((
        "measure_spawn",
        Box::pin(async move { measured.measuring().unwrap().measure_spawn("/bin/true", 3).await.map(drop) }),
    ));
    all.push(("signal", Box::pin(async move { three.signal(&third, 9).await })));
    all
}

#[tokio::test]
async fn an_agent_that_answers_pings_only_fails_every_request_in_time() {
    let host = impatient();
    let (guest, mut peer) = host.pair().await;
    let answering = tokio::spawn(async move { peer.answer_pings().await });
    let begun = Instant::now();
    let all = calls(&guest).into_iter().map(|(name, call)| async move {
        let outcome = tokio::time::timeout(LONG, call).await;
        let outcome = outcome.unwrap_or_else(|_| panic!("{name} waits for ever"));
        assert!(matches!(outcome, Err(GuestError::Timeout { .. })), "{name}: {outcome:?}");
    });
    futures::future::join_all(all).await;
    eprintln!("all requests failed within {:?}", begun.elapsed());
    // It lives, as far as anybody can tell.
    guest.ping().await.unwrap();
    assert!(guest.closed().borrow().is_none());
    drop(guest);
    tokio::time::timeout(LONG, answering).await.unwrap().unwrap();
}

#[tokio::test]
async fn an_agent_that_falls_silent_in_the_middle_fails_the_transfer() {
    let host = impatient();
    let (guest, mut peer) = host.pair().await;
    let answering = tokio::spawn(async move {
        loop {
            let Some(stream) = peer.open_or_gone().await else { return };
            match stream.1 {
                "read" => {
                    peer.message(stream.0, Reply::Stat(Stat::default())).await;
                    peer.send(FrameKind::Data, stream.0, vec![1; 1000]).await;
                }
                "pull" => peer.send(FrameKind::Data, stream.0, vec![1; 1000]).await,
                _ => {}
            }
        }
    });
    let (_, mut data) = guest.read_file(b"/x", 0, None).await.unwrap();
    assert_eq!(data.next().await.unwrap().unwrap().length(), 1000);
    let rest = tokio::time::timeout(LONG, data.next()).await.expect("the read waits for ever");
    assert!(matches!(rest, Some(Err(GuestError::Timeout { .. }))), "{rest:?}");
    let mut data = guest.pull_archive(b"/x", &[], Holes::Zeros).await.unwrap().data;
    assert_eq!(data.next().await.unwrap().unwrap().len(), 1000);
    let rest = tokio::time::timeout(LONG, data.next()).await.expect("the archive waits for ever");
    assert!(matches!(rest, Some(Err(GuestError::Timeout { .. }))), "{rest:?}");
    // While it stands still by our will, nobody counts.
    let (_, mut data) = guest.read_file(b"/x", 0, None).await.unwrap();
    data.next().await.unwrap().unwrap();
    guest.expect_heartbeats(false);
    assert!(
        tokio::time::timeout(Duration::from_millis(600), data.next()).await.is_err(),
        "a paused guest is blamed"
    );
    guest.expect_heartbeats(true);
    let rest = tokio::time::timeout(LONG, data.next()).await.expect("the read waits for ever");
    assert!(matches!(rest, Some(Err(GuestError::Timeout { .. }))), "{rest:?}");
    drop((guest, data));
    answering.abort();
}

#[tokio::test]
async fn frames_that_hold_nothing_are_no_step() {
    let host = impatient();
    let (guest, mut peer) = host.pair().await;
    let answering = tokio::spawn(async move {
        let stream = peer.open().await;
        peer.send(FrameKind::Data, stream, vec![1; 1000]).await;
        let mut tick = tokio::time::interval(Duration::from_millis(20));
        loop {
            tick.tick().await;
            peer.send(FrameKind::Data, stream, Bytes::new()).await;
        }
    });
    let mut data = guest.pull_archive(b"/x", &[], Holes::Zeros).await.unwrap().data;
    assert_eq!(data.next().await.unwrap().unwrap().len(), 1000);
    let rest = tokio::time::timeout(LONG, data.next()).await.expect("the archive waits for ever");
    assert!(matches!(rest, Some(Err(GuestError::Timeout { .. }))));
    answering.abort();
}

async fn greeted(change: impl Fn(&mut HelloReply)) -> Result<Arc<dyn Guest>, GuestError> {
    let host = Host::new();
    let (guest, ()) = tokio::join!(host.connect(Duration::from_millis(700)), async {
        let mut peer = host.peer().await;
        let nonce = peer.hello().await.nonce;
        peer.mark().await;
        let mut reply = HelloReply { version: 1, nonce, ..HelloReply::default() };
        change(&mut reply);
        peer.send(FrameKind::HelloReply, 0, reply.encode_to_vec()).await;
        if let Some((stream, _)) = peer.open_or_gone().await {
            peer.confirm_on(stream).await;
        }
    });
    guest
}

#[tokio::test]
async fn absurd_greetings_are_refused_or_harmless() {
    for version in [0, 2, u32::MAX] {
        let refused = greeted(|reply| reply.version = version).await;
        assert!(matches!(refused, Err(GuestError::Refused { .. })), "version {version}");
    }
    let refused = greeted(|reply| reply.epoch = u64::MAX).await;
    assert!(matches!(refused, Err(GuestError::Refused { .. })));
    let foreign = greeted(|reply| reply.nonce ^= 1).await;
    assert!(matches!(foreign, Err(GuestError::Timeout { .. } | GuestError::Unreachable(_))));
    let huge = greeted(|reply| reply.agent_version = "x".repeat(80_000)).await;
    assert!(matches!(huge, Err(GuestError::Protocol(_))));
    let guest = greeted(|reply| {
        reply.boot_ms = u64::MAX;
        reply.features = u64::MAX;
        reply.agent_version = "\u{1b}[2J".repeat(400);
        reply.kernel_release = "\u{9b}\n\0".repeat(400);
    })
    .await
    .unwrap();
    let agent = guest.agent();
    for text in [&agent.agent_version, &agent.kernel_release] {
        assert!(text.chars().count() <= 4096 && !text.contains(char::is_control), "{:.20}", text);
    }
}

#[tokio::test]
async fn an_identity_must_be_confirmed_part_by_part() {
    let part = |name: &str, problem: &str| Part { name: name.to_owned(), problem: problem.to_owned() };
    let noise: Vec<Part> = (0..5000).map(|n| part(&n.to_string(), "")).collect();
    for parts in [vec![], noise, vec![part("entropy", "\u{1b}[31mno")]] {
        let host = Host::new();
        let (guest, ()) = tokio::join!(host.connect(LONG), async {
            let mut peer = host.peer().await;
            peer.greet().await;
            let stream = peer.open().await;
            peer.message(stream, Reply::Configured(Configured { parts: parts.clone() })).await;
        });
        let error = guest.err().expect("a VM without identity is handed over").to_string();
        assert!(error.contains("identity") && !error.contains('\u{1b}'), "{error}");
    }
}

/// Outcome of a call that is answered with `replies`, and of its channel.
async fn answered<T>(
    call: impl AsyncFnOnce(&dyn Guest) -> Result<T, GuestError>,
    replies: Vec<Reply>,
) -> (Result<T, GuestError>, Option<CloseReason>) {
    let host = impatient();
    let (guest, mut peer) = host.pair().await;
    let (outcome, ()) = tokio::join!(tokio::time::timeout(LONG, call(&*guest)), async {
        let stream = peer.open().await;
        for reply in replies {
            peer.message(stream, reply).await;
        }
        peer.send(FrameKind::End, stream, Bytes::new()).await;
    });
    let closed = guest.closed().borrow().clone();
    (outcome.expect("the call waits for ever"), closed)
}

#[tokio::test]
async fn answers_to_another_question_end_the_channel() {
    let wrong = || Reply::Written(Written::default());
    let (stat, closed) = answered(async |guest| guest.stat(b"/x").await, vec![wrong()]).await;
    assert!(matches!(stat, Err(GuestError::Protocol(_))) && closed.is_some());
    let (done, closed) = answered(async |guest| guest.rename(b"/x", b"/y").await, vec![wrong()]).await;
    assert!(matches!(done, Err(GuestError::Protocol(_))) && closed.is_some());
    let (hash, closed) = answered(
        async |guest| guest.hash_file(b"/x").await,
        vec![Reply::Hash(microvm_protocol::messages::Hash { sha256: vec![1; 31] })],
    )
    .await;
    assert!(matches!(hash, Err(GuestError::Protocol(_))) && closed.is_some());
    let written = Reply::Written(Written { bytes: u64::MAX, ..Written::default() });
    let data = content_of(vec![vec![1; 10]]);
    let write = async |guest: &dyn Guest| guest.write_file(b"/x", &WriteOptions::default(), data).await;
    let (count, closed) = answered(write, vec![written]).await;
    assert!(matches!(count, Err(GuestError::Protocol(_))) && closed.is_some(), "{count:?}");
}

#[tokio::test]
async fn answers_that_come_twice_or_for_others_disturb_nobody_else() {
    let host = impatient();
    let (guest, mut peer) = host.pair().await;
    let (other, mut good) = host.pair().await;
    // Crossed: the answer to one question on the stream of the other.
    let (first, second, ()) = tokio::join!(guest.stat(b"/a"), guest.health(), async {
        let (one, two) = (peer.open().await, peer.open().await);
        peer.message(two, Reply::Stat(Stat::default())).await;
        peer.message(one, Reply::Measured(Measured::default())).await;
    });
    assert!(first.is_err() && second.is_err());
    assert!(matches!(common::peer::reason(&*guest).await, CloseReason::Protocol(_)));
    // Another guest is as it was: doubled answers, and answers to what was given up, are dropped.
    let serve = async {
        for _ in 0..3 {
            let stream = good.open().await;
            for _ in 0..100 {
                good.message(stream, Reply::Stat(Stat { size: 7, ..Stat::default() })).await;
            }
            good.send(FrameKind::End, stream, Bytes::new()).await;
        }
    };
    let ask = async {
        for _ in 0..3 {
            assert_eq!(other.stat(b"/a").await.unwrap().size, 7);
        }
    };
    tokio::time::timeout(LONG, async { tokio::join!(serve, ask) }).await.unwrap();
    assert!(other.closed().borrow().is_none());
}

#[tokio::test]
async fn processes_that_end_twice_or_go_on_after_their_end() {
    let host = Host::new();
    let (guest, mut peer) = host.pair().await;
    let request = shell("true");
    let (process, ()) = tokio::join!(guest.exec(&request), async {
        let stream = peer.open().await;
        peer.message(stream, Reply::Started(Started { pid: u32::MAX, ..Started::default() })).await;
        let exited = Exited { code: Some(u32::MAX), signal: Some(u32::MAX), ..Exited::default() };
        peer.message(stream, Reply::Exited(exited)).await;
        peer.send(FrameKind::Data, stream, vec![1; 1000]).await;
        peer.message(stream, Reply::Exited(Exited::default())).await;
    });
    let mut events = process.unwrap().events;
    let first = tokio::time::timeout(LONG, events.next()).await.unwrap();
    // All 32 bits of the code arrive; signals are small on every system.
    let Some(ProcessEvent::Exited(status)) = first else { panic!("{first:?}") };
    assert_eq!((status.code, status.signal), (Some(u32::MAX), Some(u8::MAX)));
    let rest = tokio::time::timeout(LONG, events.next()).await.expect("the events never end");
    assert!(rest.is_none(), "{rest:?}");
    // A process that is started twice, or whose end is not said, is lost.
    for second in [Some(Reply::Started(Started::default())), None] {
        let host = Host::new();
        let (guest, mut peer) = host.pair().await;
        let (process, ()) = tokio::join!(guest.exec(&request), async {
            let stream = peer.open().await;
            peer.message(stream, Reply::Started(Started::default())).await;
            if let Some(second) = second {
                peer.message(stream, second).await;
            }
            peer.send(FrameKind::End, stream, Bytes::new()).await;
        });
        let lost = tokio::time::timeout(LONG, process.unwrap().events.next()).await.unwrap();
        assert!(matches!(lost, Some(ProcessEvent::Lost(_))), "{lost:?}");
    }
}

#[tokio::test]
async fn numbers_and_names_of_guests_are_tamed() {
    let odd = "\u{1b}]0;x\u{7}\u{9b}2J\r\n".to_owned() + &"y".repeat(20_000);
    let plain = |text: &str| text.chars().count() <= 4096 && !text.contains(char::is_control);
    let processes = GuestProcess { state: u32::MAX, command: odd.clone(), ..GuestProcess::default() };
    let reply = Reply::GuestProcesses(GuestProcesses { processes: vec![processes; 2] });
    let (list, closed) = answered(async |guest| guest.guest_processes().await, vec![reply]).await;
    let list = list.unwrap();
    assert!(list.len() == 2 && plain(&list[0].command) && list[0].state == '?' && closed.is_none());
    let process = Process { id: "../../x".into(), command: vec![odd.clone()], ..Process::default() };
    let good = Process { id: ProcessId::from_parts(1, 2).to_string(), ..process.clone() };
    let reply = Reply::Processes(Processes { processes: vec![process, good] });
    let (list, _) = answered(async |guest| guest.processes().await, vec![reply]).await;
    let list = list.unwrap();
    assert!(list.len() == 1 && plain(&list[0].command[0]), "an id that is none is left out");
    let system = System {
        operating_system: odd.clone(),
        host_name: odd.clone(),
        load_average: vec![f64::NAN, f64::INFINITY, -1.0, 4.0],
        memory_total: u64::MAX,
        uptime_seconds: u64::MAX,
        wall_clock_ms: i64::MIN,
        ..System::default()
    };
    let (system, _) = answered(async |guest| guest.system_info().await, vec![Reply::System(system)]).await;
    let system = system.unwrap();
    assert!(plain(&system.operating_system) && plain(&system.host_name));
    assert!(system.load_average.iter().all(|load| load.is_finite()));
    let not_started = NotStarted {
        command: "\x1b[2J".repeat(5_000),
        reason: "\x07".repeat(20_000),
        ..NotStarted::default()
    };
    let measured = Measured {
        cpu_percent: f64::NAN,
        memory_percent: 1e300,
        disk_percent: -5.0,
        not_started: Some(not_started),
        ..Default::default()
    };
    let (health, _) = answered(async |guest| guest.health().await, vec![Reply::Measured(measured)]).await;
    let health = health.unwrap();
    assert_eq!((health.cpu_percent, health.memory_percent, health.disk_percent), (0.0, 100.0, 0.0));
    let not_started = health.start_command_not_started.unwrap();
    assert!(plain(&not_started.command) && plain(&not_started.reason));
    let stat = Stat {
        path: vec![0xff; 60_000],
        target: Some(b"/\xff".repeat(2000)),
        size: u64::MAX,
        mode: u32::MAX,
        modified_ms: i64::MIN,
        kind: i32::MAX,
        ..Stat::default()
    };
    let (stat, _) = answered(async |guest| guest.stat(b"/x").await, vec![Reply::Stat(stat)]).await;
    let stat = stat.unwrap();
    assert!(stat.path.chars().count() <= 4096 && stat.mode <= 0o7777, "{stat:?}");
    let empty = Reply::Stats(Stats { entries: vec![Stat::default(); 20_000], ..Stats::default() });
    let (list, closed) =
        answered(async |guest| guest.list(b"/", 1).await, std::iter::repeat_n(empty, 6).collect()).await;
    assert!(matches!(list, Err(GuestError::Protocol(_))) && closed.is_some(), "120,000 entries are too many");
}

#[tokio::test]
async fn text_that_is_none_and_bodies_that_are_none_end_the_channel() {
    for body in [&b"\xff\xff\xff\xff"[..], b"\x5a\x05\x0a\x03\xff\xfe\xfd", b"\x32\xff\xff\xff\xff\x0f"] {
        let host = Host::new();
        let (guest, mut peer) = host.pair().await;
        let (info, ()) = tokio::join!(tokio::time::timeout(LONG, guest.system_info()), async {
            let stream = peer.open().await;
            peer.send(FrameKind::Message, stream, Bytes::copy_from_slice(body)).await;
        });
        assert!(info.expect("it waits for ever").is_err(), "{body:?}");
    }
}

#[tokio::test]
async fn a_port_that_says_too_much_holds_no_more_than_its_window() {
    let host = Host::new();
    let (guest, mut peer) = host.pair().await;
    let (connection, ()) = tokio::join!(guest.connect_port(80), async {
        let stream = peer.open().await;
        peer.message(stream, Reply::Done(Empty {})).await;
        for _ in 0..64 {
            peer.send(FrameKind::Data, stream, vec![1; 60_000]).await;
        }
    });
    assert!(matches!(common::peer::reason(&*guest).await, CloseReason::Protocol(_)));
    let mut incoming = connection.unwrap().incoming;
    let mut bytes = 0;
    while let Some(Ok(part)) = incoming.next().await {
        bytes += part.len();
    }
    assert!(bytes <= 512 << 10, "{bytes}");
}
