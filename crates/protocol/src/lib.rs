//! The language of the channel between host and guest agent: frames, messages, flow control.
//!
//! ```text
//!   preamble ┐
//!            ▼
//!   Hello ─────▶ HelloReply          once per session, stream 0
//!   Open ─▶ Message · Data · DataErr · Zeros · Credit … ─▶ End | Reset      per stream, both directions
//!   Ping ─▶ Pong                     stream 0
//! ```
//!
//! A frame is a 16-byte header and a payload; control payloads are protobuf, bulk payloads are raw bytes. The
//! multiplexer ([`mux::Mux`]) keeps the streams of one session and turns them into bytes and back, with per-stream
//! credit; it is used by both ends. What this crate does *not* do: read or write a socket, spawn tasks, know a file or a
//! process. See `docs/protocol.md` for the format and its rules.

pub mod checksum;
pub mod decoder;
pub mod flow;
pub mod frame;
pub mod messages;
pub mod mux;
pub mod preamble;

pub use decoder::{DecodeError, Decoder};
pub use frame::{Frame, FrameKind, HEADER_LENGTH, MAX_BULK, MAX_CONTROL};
pub use preamble::PREAMBLE;

/// Version of the protocol this crate speaks. Both sides offer a range; the highest common one is taken.
pub const PROTOCOL_VERSION: u32 = 1;
