//! Frames: a header of 16 bytes and a payload.
//!
//! | offset | size | field |
//! |---|---|---|
//! | 0 | 2 | magic `m` `V` |
//! | 2 | 1 | version of the frame format (1) |
//! | 3 | 1 | kind |
//! | 4 | 4 | stream id, little-endian |
//! | 8 | 4 | payload length, little-endian |
//! | 12 | 4 | check word over bytes 0–11 and the payload, little-endian |

use bytes::Bytes;

use crate::checksum::checksum;

/// First two bytes of every frame.
pub const MAGIC: [u8; 2] = *b"mV";
/// Version of the frame format.
pub const FRAME_VERSION: u8 = 1;
/// Bytes of a header.
pub const HEADER_LENGTH: usize = 16;
/// Most bytes of a bulk payload (`Data`, `DataErr`); small, so that frames of many streams interleave.
pub const MAX_BULK: usize = 64 * 1024;
/// Most bytes of the body of a control frame. A command line with its environment must fit into one `Open`.
pub const MAX_CONTROL: usize = 256 * 1024;
/// Bulk payload that fills, with its header, exactly the 32 KiB that Linux's virtio-serial driver takes per write.
pub const GUEST_BULK: usize = 32 * 1024 - HEADER_LENGTH;

/// Kind of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum FrameKind {
    /// First frame of the host; body: [`crate::messages::Hello`]. Stream 0.
    Hello = 1,
    /// First frame of the agent; body: [`crate::messages::HelloReply`]. Stream 0.
    HelloReply = 2,
    /// Opens a stream; body: [`crate::messages::Request`]. Host only.
    Open = 3,
    /// Control within a stream; body: [`crate::messages::Message`].
    Message = 4,
    /// Bulk bytes.
    Data = 5,
    /// Bulk bytes of the second kind: standard error.
    DataErr = 6,
    /// A run of zero bytes; payload: the count as `u64`.
    Zeros = 7,
    /// Nothing more comes in this direction. Empty.
    End = 8,
    /// The stream is dead in both directions; body: [`crate::messages::Failure`].
    Reset = 9,
    /// Gives the peer more room on a stream; payload: bytes as `u32`.
    Credit = 10,
    /// Asks for a `Pong` with the same payload (8 bytes). Stream 0.
    Ping = 11,
    /// Answers a `Ping`. Stream 0.
    Pong = 12,
}

impl FrameKind {
    /// The kind with this number.
    #[must_use]
    pub const fn from_byte(byte: u8) -> Option<Self> {
        Some(match byte {
            1 => Self::Hello,
            2 => Self::HelloReply,
            3 => Self::Open,
            4 => Self::Message,
            5 => Self::Data,
            6 => Self::DataErr,
            7 => Self::Zeros,
            8 => Self::End,
            9 => Self::Reset,
            10 => Self::Credit,
            11 => Self::Ping,
            12 => Self::Pong,
            _ => return None,
        })
    }

    /// Payload lengths that are allowed for this kind, both ends included.
    #[must_use]
    pub const fn length_range(self) -> (usize, usize) {
        match self {
            Self::Hello | Self::HelloReply | Self::Reset => (0, 4096),
            Self::Open => (0, MAX_CONTROL),
            Self::Message | Self::Data | Self::DataErr => (0, MAX_BULK),
            Self::Zeros | Self::Ping | Self::Pong => (8, 8),
            Self::End => (0, 0),
            Self::Credit => (4, 4),
        }
    }

    /// Returns true if frames of this kind use up credit of their stream.
    #[must_use]
    pub const fn costs_credit(self) -> bool {
        matches!(self, Self::Message | Self::Data | Self::DataErr | Self::Zeros)
    }
}

/// One frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// What it is.
    pub kind: FrameKind,
    /// Stream it belongs to; 0 for the session itself.
    pub stream: u32,
    /// Its body.
    pub payload: Bytes,
}

impl Frame {
    /// A frame. Lengths are checked when it is decoded; senders keep to [`FrameKind::length_range`].
    #[must_use]
    pub const fn new(kind: FrameKind, stream: u32, payload: Bytes) -> Self {
        Self { kind, stream, payload }
    }

    /// Credit this frame uses up: its size on the channel, so that empty frames are not free.
    #[must_use]
    pub const fn cost(&self) -> usize {
        HEADER_LENGTH + self.payload.len()
    }

    /// The header with its check word.
    #[must_use]
    pub fn header(&self) -> [u8; HEADER_LENGTH] {
        let length = u32::try_from(self.payload.len()).expect("payloads are far below 4 GiB");
        let mut header = [0; HEADER_LENGTH];
        header[..2].copy_from_slice(&MAGIC);
        header[2] = FRAME_VERSION;
        header[3] = self.kind as u8;
        header[4..8].copy_from_slice(&self.stream.to_le_bytes());
        header[8..12].copy_from_slice(&length.to_le_bytes());
        let start: [u8; 12] = header[..12].try_into().expect("12 bytes");
        header[12..].copy_from_slice(&checksum(&start, &self.payload).to_le_bytes());
        header
    }

    /// Appends header and payload to `buffer`.
    pub fn encode_into(&self, buffer: &mut Vec<u8>) {
        buffer.extend_from_slice(&self.header());
        buffer.extend_from_slice(&self.payload);
    }
}
