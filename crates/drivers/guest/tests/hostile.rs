//! Guests that mean harm, against the host's side.
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "tests fail by panicking and say why they skip")]

mod common;

use std::time::Duration;

use bytes::Bytes;
use common::peer::{Host, reason};
use common::{collect, shell};
use futures::StreamExt as _;
use microvm_ports::GuestError;
use microvm_ports::guest::{CloseReason, ProcessEvent, ProcessInput};
use microvm_protocol::flow::INITIAL_WINDOW;
use microvm_protocol::messages::{Empty, Message, Reply, Started, Stat, Stats};
use microvm_protocol::{Frame, FrameKind, PREAMBLE};
use microvm_types::ErrorKind;
use prost::Message as _;
use tokio::io::AsyncWriteExt as _;

#[tokio::test]
async fn a_handshake_that_never_ends_times_out() {
    let host = Host::new();
    let (result, _peer) = tokio::join!(host.connect(Duration::from_millis(300)), async {
        let mut peer = host.peer().await;
        peer.hello().await;
        peer.socket.write_all(&PREAMBLE).await.unwrap();
        peer
    });
    assert!(matches!(result, Err(GuestError::Timeout { .. })));
}

#[tokio::test]
async fn endless_garbage_instead_of_an_answer_is_cut_off() {
    let host = Host::new();
    let (result, ()) = tokio::join!(host.connect(Duration::from_secs(20)), async {
        let mut peer = host.peer().await;
        peer.hello().await;
        while peer.socket.write_all(&[b'x'; 65536]).await.is_ok() {}
    });
    assert!(matches!(result, Err(GuestError::Protocol(_))));
}

#[tokio::test]
async fn broken_frames_close_the_channel() {
    let mut absurd = Frame::new(FrameKind::Data, 1, Bytes::new()).header();
    absurd[8..12].copy_from_slice(&u32::MAX.to_le_bytes());
    for bytes in [&b"this is no frame at all"[..], &absurd] {
        let host = Host::new();
        let (guest, mut peer) = host.pair().await;
        assert_eq!(guest.agent().agent_version, "x\u{fffd}[31m");
        peer.socket.write_all(bytes).await.unwrap();
        assert!(matches!(reason(&*guest).await, CloseReason::Protocol(_)));
        assert!(matches!(guest.health().await, Err(GuestError::Closed(CloseReason::Protocol(_)))));
    }
}

#[tokio::test]
async fn rules_of_streams_are_held() {
    // Opening streams, asking for pongs, speaking on streams that never were, giving credit without end.
    let cases: [(FrameKind, u32, &[u8]); 5] = [
        (FrameKind::Open, 7, b""),
        (FrameKind::Ping, 0, b"12345678"),
        (FrameKind::Data, 999, b"x"),
        (FrameKind::Hello, 0, b""),
        (FrameKind::Credit, 2, &[255; 4]),
    ];
    for (kind, stream, payload) in cases {
        let host = Host::new();
        let (guest, mut peer) = host.pair().await;
        let (_, closed) = tokio::join!(guest.health(), async {
            peer.open().await;
            peer.send(kind, stream, Bytes::copy_from_slice(payload)).await;
            reason(&*guest).await
        });
        assert!(matches!(closed, CloseReason::Protocol(_)), "{kind:?}: {closed:?}");
    }
}

#[tokio::test]
async fn more_data_than_credit_closes_the_channel_and_memory_stays_bounded() {
    let host = Host::new();
    let (guest, mut peer) = host.pair().await;
    let request = shell("true");
    let (process, ()) = tokio::join!(guest.exec(&request), async {
        let stream = peer.open().await;
        peer.message(stream, Reply::Started(Started::default())).await;
        // Nobody takes it: the window is soon full, an honest agent would wait.
        for _ in 0..32 {
            peer.send(FrameKind::Data, stream, vec![1; 60_000]).await;
        }
    });
    assert!(matches!(reason(&*guest).await, CloseReason::Protocol(_)));
    let mut events = process.unwrap().events;
    let mut bytes = 0;
    loop {
        match events.next().await.unwrap() {
            ProcessEvent::Stdout(data) => bytes += data.len(),
            ProcessEvent::Lost(GuestError::Closed(CloseReason::Protocol(_))) => break,
            other => panic!("{other:?}"),
        }
    }
    assert!(bytes <= 512 * 1024);
}

#[tokio::test]
async fn zeros_without_end_are_counted_and_limited() {
    let host = Host::new();
    let (guest, mut peer) = host.pair().await;
    let (read, ()) = tokio::join!(guest.read_file(b"/x", 0, Some(1 << 20)), async {
        let stream = peer.open().await;
        peer.message(stream, Reply::Stat(Stat::default())).await;
        peer.send(FrameKind::Zeros, stream, (1u64 << 19).to_le_bytes().to_vec()).await;
        peer.send(FrameKind::Zeros, stream, u64::MAX.to_le_bytes().to_vec()).await;
    });
    let mut data = read.unwrap().1;
    let mut bytes = 0;
    let error = loop {
        match data.next().await.unwrap() {
            Ok(part) => bytes += part.length(),
            Err(error) => break error,
        }
    };
    assert_eq!(bytes, 1u64 << 19);
    assert!(matches!(error, GuestError::Protocol(_)));
}

#[tokio::test]
async fn a_silent_guest_is_lost_unless_it_may_be_silent() {
    let host = Host::new();
    let (guest, _peer) = host.pair().await;
    guest.expect_heartbeats(false);
    tokio::time::sleep(Duration::from_millis(700)).await;
    assert!(guest.closed().borrow().is_none());
    guest.expect_heartbeats(true);
    assert!(matches!(reason(&*guest).await, CloseReason::HeartbeatLost(_)));
}

#[tokio::test]
async fn a_vanished_machine_ends_everything() {
    let host = Host::new();
    let (guest, mut peer) = host.pair().await;
    let (read, ()) = tokio::join!(guest.read_file(b"/x", 0, None), async {
        let stream = peer.open().await;
        peer.message(stream, Reply::Stat(Stat::default())).await;
        drop(peer);
    });
    let error = read.unwrap().1.next().await.unwrap().unwrap_err();
    assert!(matches!(error, GuestError::Closed(CloseReason::EndOfStream)));
    assert_eq!(reason(&*guest).await, CloseReason::EndOfStream);
    let _ = collect(Box::pin(futures::stream::empty())).await;
}

#[tokio::test]
async fn lists_are_bounded_in_memory() {
    let host = Host::new();
    let (guest, mut peer) = host.pair().await;
    // 2,500 paths that are not text: four times as large here as on the wire, 40 MB in all.
    let entry = Stat { path: vec![0xff; 4096], ..Stat::default() };
    let reply = Message { reply: Some(Reply::Stats(Stats { entries: vec![entry; 10], ..Stats::default() })) }
        .encode_to_vec();
    let (list, ()) = tokio::join!(guest.list(b"/", 1), async {
        let stream = peer.open().await;
        let mut credit = INITIAL_WINDOW as usize;
        for _ in 0..250 {
            while credit < reply.len() + 1024 {
                let frame = peer.frame().await;
                match frame.kind {
                    FrameKind::Credit => {
                        credit += u32::from_le_bytes(*frame.payload.first_chunk().unwrap()) as usize;
                    }
                    FrameKind::Reset => return,
                    _ => {}
                }
            }
            let frame = Frame::new(FrameKind::Message, stream, reply.clone().into());
            credit -= frame.cost();
            peer.send(frame.kind, stream, frame.payload).await;
        }
        peer.send(FrameKind::End, stream, Bytes::new()).await;
    });
    let count = list.as_ref().map(|list| list.entries.len());
    assert!(matches!(list, Err(GuestError::Refused { kind: ErrorKind::Exhausted, .. })), "{count:?}");
    // It may have been honest: the channel lives.
    assert!(guest.closed().borrow().is_none());
}

#[tokio::test]
async fn lists_of_nothing_without_end_close_the_channel() {
    let host = Host::new();
    let (guest, mut peer) = host.pair().await;
    let (list, ()) = tokio::join!(guest.list(b"/", 1), async {
        let stream = peer.open().await;
        peer.message(stream, Reply::Stats(Stats::default())).await;
        peer.send(FrameKind::End, stream, Bytes::new()).await;
    });
    assert!(matches!(list, Err(GuestError::Protocol(_))));
    assert!(matches!(reason(&*guest).await, CloseReason::Protocol(_)));
}

#[tokio::test]
async fn lists_that_never_end_time_out() {
    let mut host = Host::new();
    host.config.heartbeat_timeout = Duration::from_secs(60);
    host.config.request_timeout = Duration::from_millis(50);
    let (guest, mut peer) = host.pair().await;
    let (list, ()) =
        tokio::join!(tokio::time::timeout(Duration::from_secs(10), guest.list(b"/", 1)), async {
            let stream = peer.open().await;
            peer.message(stream, Reply::Stats(Stats { entries: vec![Stat::default()], ..Stats::default() }))
                .await;
        });
    assert!(matches!(list.expect("the list has a deadline"), Err(GuestError::Timeout { .. })));
}

#[tokio::test]
async fn a_port_that_takes_nothing_is_given_up_with_its_client() {
    let host = Host::new();
    let (guest, mut peer) = host.pair().await;
    let (connection, stream) = tokio::join!(guest.connect_port(80), async {
        let stream = peer.open().await;
        peer.message(stream, Reply::Done(Empty {})).await;
        stream
    });
    let connection = connection.unwrap();
    // Without any credit from the peer, this fills the window and waits.
    let block = Bytes::from(vec![1; 2 * INITIAL_WINDOW as usize]);
    connection.outgoing.send(block).await.unwrap();
    drop(connection);
    peer.reset(stream).await;
}

#[tokio::test]
async fn a_port_may_end_its_direction_first() {
    let host = Host::new();
    let (guest, mut peer) = host.pair().await;
    let (connection, stream) = tokio::join!(guest.connect_port(80), async {
        let stream = peer.open().await;
        peer.message(stream, Reply::Done(Empty {})).await;
        peer.send(FrameKind::End, stream, Bytes::new()).await;
        stream
    });
    let mut connection = connection.unwrap();
    assert!(connection.incoming.next().await.is_none());
    connection.outgoing.send(Bytes::from_static(b"still here")).await.unwrap();
    let heard = async {
        loop {
            let frame = peer.frame().await;
            if frame.stream == stream {
                return frame;
            }
        }
    };
    let frame = tokio::time::timeout(Duration::from_secs(10), heard).await.unwrap();
    assert_eq!((frame.kind, &frame.payload[..]), (FrameKind::Data, &b"still here"[..]));
}

#[tokio::test]
async fn input_that_nobody_reads_is_given_up_with_the_events() {
    let host = Host::new();
    let (guest, mut peer) = host.pair().await;
    let mut request = shell("true");
    request.stdin = true;
    let (process, stream) = tokio::join!(guest.exec(&request), async {
        let stream = peer.open().await;
        peer.message(stream, Reply::Started(Started::default())).await;
        stream
    });
    let process = process.unwrap();
    let input = std::sync::Arc::clone(&process.input);
    let block = Bytes::from(vec![1; 2 * INITIAL_WINDOW as usize]);
    let sending = tokio::spawn(async move { input.send(ProcessInput::Stdin(block)).await });
    // It is under way once the first of it comes.
    while peer.frame().await.kind != FrameKind::Data {}
    drop(process);
    peer.reset(stream).await;
    sending.await.unwrap().unwrap();
}
