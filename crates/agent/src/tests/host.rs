//! A host at the other end of a stream, as simple as can be.

use microvm_protocol::messages::{Exec, Hello, HelloReply, Message, Operation, Reply, Request};
use microvm_protocol::preamble::find_end;
use microvm_protocol::{Decoder, Frame, FrameKind, PREAMBLE};
use prost::Message as _;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

/// The host's end of a stream that outlives each host.
pub(super) struct Host<S> {
    pub(super) stream: S,
    decoder: Decoder,
}

/// First bytes of a host.
pub(super) fn greeting(nonce: u64) -> Vec<u8> {
    let hello = Hello { min_version: 1, max_version: 1, features: 0, nonce, epoch: 1 };
    let mut bytes = PREAMBLE.to_vec();
    Frame::new(FrameKind::Hello, 0, hello.encode_to_vec().into()).encode_into(&mut bytes);
    bytes
}

/// A frame that opens a stream for a command.
pub(super) fn open(stream: u32, id: &str, command: &str) -> Vec<u8> {
    let exec = Exec {
        id: id.to_owned(),
        command: ["/bin/sh", "-c", command].map(str::to_owned).to_vec(),
        stdin: true,
        ..Exec::default()
    };
    let request = Request { operation: Some(Operation::Exec(exec)) };
    encoded(FrameKind::Open, stream, &request.encode_to_vec())
}

pub(super) fn encoded(kind: FrameKind, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    Frame::new(kind, stream, payload.to_vec().into()).encode_into(&mut bytes);
    bytes
}

impl<S: AsyncRead + AsyncWrite + Unpin> Host<S> {
    pub(super) fn new(stream: S) -> Self {
        Self { stream, decoder: Decoder::new() }
    }

    pub(super) async fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.unwrap();
        self.stream.flush().await.unwrap();
    }

    async fn more(&mut self) {
        let mut buffer = [0; 4096];
        let count = self.stream.read(&mut buffer).await.unwrap();
        assert!(count > 0, "the agent hung up");
        self.decoder.feed(&buffer[..count]);
    }

    /// Drops everything up to the answer to `nonce`.
    pub(super) async fn greeted(&mut self, nonce: u64) -> HelloReply {
        loop {
            if let Some(end) = find_end(self.decoder.peek()) {
                self.decoder.skip(end);
                let frame = self.frame().await;
                assert_eq!(frame.kind, FrameKind::HelloReply);
                let reply = HelloReply::decode(frame.payload).unwrap();
                if reply.nonce == nonce {
                    return reply;
                }
            }
            self.more().await;
        }
    }

    async fn frame(&mut self) -> Frame {
        loop {
            if let Some(frame) = self.decoder.next_frame().unwrap() {
                return frame;
            }
            self.more().await;
        }
    }

    /// Waits for the first reply on `stream`; credit and output before it are dropped.
    pub(super) async fn reply(&mut self, stream: u32) -> Reply {
        loop {
            let frame = self.frame().await;
            if frame.kind == FrameKind::Message && frame.stream == stream {
                return Message::decode(frame.payload).unwrap().reply.unwrap();
            }
            assert_ne!(frame.kind, FrameKind::Reset, "{:?}", frame.payload);
        }
    }

    /// Output of a command up to its end.
    pub(super) async fn output(&mut self, stream: u32) -> Vec<u8> {
        let mut output = Vec::new();
        loop {
            let frame = self.frame().await;
            match frame.kind {
                FrameKind::Data if frame.stream == stream => output.extend_from_slice(&frame.payload),
                FrameKind::End if frame.stream == stream => return output,
                FrameKind::Reset => panic!("{:?}", frame.payload),
                _ => {}
            }
        }
    }
}
