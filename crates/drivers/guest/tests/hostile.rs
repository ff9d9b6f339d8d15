//! Guests that mean harm, against the host's side.
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "tests fail by panicking and say why they skip")]

mod common;

use std::time::Duration;

use bytes::Bytes;
use camino::Utf8PathBuf;
use common::{collect, shell};
use futures::StreamExt as _;
use microvm_driver_guest::{GuestConfig, SocketGuestConnector};
use microvm_ports::guest::{CloseReason, Guest, GuestEndpoint, Identity, ProcessEvent, ProcessInput};
use microvm_ports::{GuestConnector as _, GuestError};
use microvm_protocol::flow::INITIAL_WINDOW;
use microvm_protocol::messages::{
    Configured, Empty, Hello, HelloReply, Message, PARTS, Part, Reply, Started, Stat, Stats,
};
use microvm_protocol::{Decoder, Frame, FrameKind, PREAMBLE};
use microvm_types::ErrorKind;
use prost::Message as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};

/// A guest whose answers are made by hand.
struct Peer {
    socket: UnixStream,
    decoder: Decoder,
}

impl Peer {
    async fn frame(&mut self) -> Frame {
        loop {
            if let Some(frame) = self.decoder.next_frame().unwrap() {
                return frame;
            }
            assert_ne!(self.socket.read_buf(self.decoder.buffer()).await.unwrap(), 0, "the host has gone");
        }
    }

    async fn hello(&mut self) -> Hello {
        let mut mark = [0; PREAMBLE.len()];
        self.socket.read_exact(&mut mark).await.unwrap();
        assert_eq!(mark, PREAMBLE);
        Hello::decode(self.frame().await.payload).unwrap()
    }

    async fn send(&mut self, kind: FrameKind, stream: u32, payload: impl Into<Bytes>) {
        let mut bytes = Vec::new();
        Frame::new(kind, stream, payload.into()).encode_into(&mut bytes);
        // The host may have closed the channel already: that is what is tested.
        let _ = self.socket.write_all(&bytes).await;
    }

    async fn message(&mut self, stream: u32, reply: Reply) {
        self.send(FrameKind::Message, stream, Message { reply: Some(reply) }.encode_to_vec()).await;
    }

    /// A good guest up to the confirmed identity.
    async fn behave(&mut self) {
        let hello = self.hello().await;
        self.socket.write_all(b"left over from before").await.unwrap();
        for nonce in [hello.nonce ^ 1, hello.nonce] {
            self.socket.write_all(&PREAMBLE).await.unwrap();
            let reply = HelloReply {
                version: 1,
                nonce,
                agent_version: "x\x1b[31m".to_owned(),
                ..HelloReply::default()
            };
            self.send(FrameKind::HelloReply, 0, reply.encode_to_vec()).await;
        }
        let stream = self.open().await;
        let parts =
            PARTS.iter().map(|name| Part { name: (*name).to_owned(), problem: String::new() }).collect();
        self.message(stream, Reply::Configured(Configured { parts })).await;
        self.send(FrameKind::End, stream, Bytes::new()).await;
    }

    /// Reads until the host gives a stream up.
    async fn reset(&mut self, stream: u32) {
        let wait = async {
            loop {
                let frame = self.frame().await;
                if frame.kind == FrameKind::Reset && frame.stream == stream {
                    return;
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(10), wait).await.expect("the host gives the stream up");
    }

    async fn open(&mut self) -> u32 {
        loop {
            let frame = self.frame().await;
            if frame.kind == FrameKind::Open {
                return frame.stream;
            }
        }
    }
}

struct Host {
    config: GuestConfig,
    endpoint: GuestEndpoint,
    listener: UnixListener,
    _directory: tempfile::TempDir,
}

impl Host {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut path = directory.path().to_path_buf();
        // Longer than a socket's address.
        for _ in 0..3 {
            path.push("x".repeat(40));
        }
        std::fs::create_dir_all(&path).unwrap();
        let short = directory.path().join("s");
        let listener = UnixListener::bind(&short).unwrap();
        std::fs::rename(&short, path.join("agent.sock")).unwrap();
        let endpoint =
            GuestEndpoint::UnixSocket(Utf8PathBuf::from_path_buf(path.join("agent.sock")).unwrap());
        let config = GuestConfig {
            heartbeat_interval: Duration::from_millis(50),
            heartbeat_timeout: Duration::from_millis(400),
            ..GuestConfig::default()
        };
        Self { config, endpoint, listener, _directory: directory }
    }

    async fn peer(&self) -> Peer {
        Peer { socket: self.listener.accept().await.unwrap().0, decoder: Decoder::new() }
    }

    async fn connect(&self, deadline: Duration) -> Result<std::sync::Arc<dyn Guest>, GuestError> {
        SocketGuestConnector::new(self.config.clone())
            .connect(&self.endpoint, 1, &Identity::default(), deadline)
            .await
    }

    /// A connected guest with its peer.
    async fn pair(&self) -> (std::sync::Arc<dyn Guest>, Peer) {
        let (guest, peer) = tokio::join!(self.connect(Duration::from_secs(10)), async {
            let mut peer = self.peer().await;
            peer.behave().await;
            peer
        });
        (guest.unwrap(), peer)
    }
}

async fn reason(guest: &dyn Guest) -> CloseReason {
    let mut closed = guest.closed();
    let wait = closed.wait_for(Option::is_some);
    let reason =
        tokio::time::timeout(Duration::from_secs(10), wait).await.expect("the channel is closed").unwrap();
    reason.clone().unwrap()
}

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
async fn zeros_without_end_are_expanded_slowly_and_limited() {
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
            Ok(part) => bytes += part.len(),
            Err(error) => break error,
        }
    };
    assert_eq!(bytes, 1 << 19);
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
