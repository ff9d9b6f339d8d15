//! A guest whose answers are made by hand, and the host's side of its channel.

use std::time::Duration;

use bytes::Bytes;
use camino::Utf8PathBuf;
use microvm_driver_guest::{GuestConfig, SocketGuestConnector};
use microvm_ports::guest::{CloseReason, Guest, GuestEndpoint, Identity};
use microvm_ports::{GuestConnector as _, GuestError};
use microvm_protocol::messages::{
    Configured, Hello, HelloReply, Message, Operation, PARTS, Part, Reply, Request,
};
use microvm_protocol::{Decoder, Frame, FrameKind, PREAMBLE};
use prost::Message as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};

/// A guest whose answers are made by hand.
pub struct Peer {
    pub socket: UnixStream,
    decoder: Decoder,
}

impl Peer {
    pub async fn frame(&mut self) -> Frame {
        loop {
            if let Some(frame) = self.decoder.next_frame().unwrap() {
                return frame;
            }
            assert_ne!(self.socket.read_buf(self.decoder.buffer()).await.unwrap(), 0, "the host has gone");
        }
    }

    pub async fn hello(&mut self) -> Hello {
        let mut mark = [0; PREAMBLE.len()];
        self.socket.read_exact(&mut mark).await.unwrap();
        assert_eq!(mark, PREAMBLE);
        Hello::decode(self.frame().await.payload).unwrap()
    }

    pub async fn send(&mut self, kind: FrameKind, stream: u32, payload: impl Into<Bytes>) {
        let mut bytes = Vec::new();
        Frame::new(kind, stream, payload.into()).encode_into(&mut bytes);
        // The host may have closed the channel already: that is what is tested.
        let _ = self.socket.write_all(&bytes).await;
    }

    pub async fn message(&mut self, stream: u32, reply: Reply) {
        self.send(FrameKind::Message, stream, Message { reply: Some(reply) }.encode_to_vec()).await;
    }

    /// A good guest up to the confirmed identity.
    pub async fn behave(&mut self) {
        self.greet().await;
        self.confirm().await;
    }

    /// The mark that begins a session.
    pub async fn mark(&mut self) {
        self.socket.write_all(&PREAMBLE).await.unwrap();
    }

    /// A good greeting, behind one that was for somebody else.
    pub async fn greet(&mut self) {
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
    }

    /// Confirms an identity.
    pub async fn confirm(&mut self) {
        let stream = self.open().await;
        self.confirm_on(stream).await;
    }

    /// Confirms an identity that was pushed on a stream.
    pub async fn confirm_on(&mut self, stream: u32) {
        let parts =
            PARTS.iter().map(|name| Part { name: (*name).to_owned(), problem: String::new() }).collect();
        self.message(stream, Reply::Configured(Configured { parts })).await;
        self.send(FrameKind::End, stream, Bytes::new()).await;
    }

    /// Reads until the host gives a stream up.
    pub async fn reset(&mut self, stream: u32) {
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

    /// The next frame; `None` if the host has gone.
    async fn next(&mut self) -> Option<Frame> {
        loop {
            if let Some(frame) = self.decoder.next_frame().unwrap() {
                return Some(frame);
            }
            if self.socket.read_buf(self.decoder.buffer()).await.is_ok_and(|count| count > 0) {
                continue;
            }
            return None;
        }
    }

    /// Answers pings, and nothing else, until the host goes.
    pub async fn answer_pings(&mut self) {
        while let Some(frame) = self.next().await {
            if frame.kind == FrameKind::Ping {
                self.send(FrameKind::Pong, 0, frame.payload).await;
            }
        }
    }

    /// The next request, by name if it is a read of a file (`read`) or of a tree (`pull`); answers pings meanwhile.
    pub async fn open_or_gone(&mut self) -> Option<(u32, &'static str)> {
        loop {
            let frame = self.next().await?;
            match frame.kind {
                FrameKind::Ping => self.send(FrameKind::Pong, 0, frame.payload).await,
                FrameKind::Open => {
                    let name = match Request::decode(frame.payload).unwrap().operation {
                        Some(Operation::ReadFile(_)) => "read",
                        Some(Operation::PullArchive(_)) => "pull",
                        _ => "",
                    };
                    return Some((frame.stream, name));
                }
                _ => {}
            }
        }
    }

    pub async fn open(&mut self) -> u32 {
        loop {
            let frame = self.frame().await;
            if frame.kind == FrameKind::Open {
                return frame.stream;
            }
        }
    }
}

pub struct Host {
    pub config: GuestConfig,
    endpoint: GuestEndpoint,
    listener: UnixListener,
    _directory: tempfile::TempDir,
}

impl Host {
    pub fn new() -> Self {
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

    pub async fn peer(&self) -> Peer {
        Peer { socket: self.listener.accept().await.unwrap().0, decoder: Decoder::new() }
    }

    pub async fn connect(&self, deadline: Duration) -> Result<std::sync::Arc<dyn Guest>, GuestError> {
        SocketGuestConnector::new(self.config.clone())
            .connect(&self.endpoint, 1, &Identity::default(), deadline)
            .await
    }

    /// A connected guest with its peer.
    pub async fn pair(&self) -> (std::sync::Arc<dyn Guest>, Peer) {
        let (guest, peer) = tokio::join!(self.connect(Duration::from_secs(10)), async {
            let mut peer = self.peer().await;
            peer.behave().await;
            peer
        });
        (guest.unwrap(), peer)
    }
}

pub async fn reason(guest: &dyn Guest) -> CloseReason {
    let mut closed = guest.closed();
    let wait = closed.wait_for(Option::is_some);
    let reason =
        tokio::time::timeout(Duration::from_secs(10), wait).await.expect("the channel is closed").unwrap();
    reason.clone().unwrap()
}
