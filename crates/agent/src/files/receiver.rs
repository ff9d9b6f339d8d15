//! Bulk data from the host, for a helper thread.

use std::io::{self, Read};
use std::sync::Arc;

use bytes::Bytes;
use microvm_protocol::mux::{Incoming, StreamError, StreamHandle};
use tokio::runtime::Handle;

/// One piece of content.
pub(super) enum Piece {
    Data(Bytes),
    Zeros(u64),
}

/// The host's side of a stream.
pub(super) struct Receiver {
    stream: Arc<StreamHandle>,
    runtime: Handle,
    data: Bytes,
    zeros: u64,
    /// Bytes that came so far, zero runs counted in full.
    pub(super) received: u64,
    /// Why the stream ended early.
    pub(super) failure: Option<StreamError>,
}

impl Receiver {
    pub(super) fn new(stream: &Arc<StreamHandle>) -> Self {
        stream.widen();
        Self {
            stream: Arc::clone(stream),
            runtime: Handle::current(),
            data: Bytes::new(),
            zeros: 0,
            received: 0,
            failure: None,
        }
    }

    /// The next piece; `None` after the host's end.
    pub(super) fn next(&mut self) -> Result<Option<Piece>, StreamError> {
        loop {
            let piece = match self.runtime.block_on(self.stream.receive())? {
                None => return Ok(None),
                Some(Incoming::Data(data)) if !data.is_empty() => Piece::Data(data),
                Some(Incoming::Zeros(count)) if count > 0 => Piece::Zeros(count),
                Some(_) => continue,
            };
            self.received = self.received.saturating_add(match &piece {
                Piece::Data(data) => data.len() as u64,
                Piece::Zeros(count) => *count,
            });
            return Ok(Some(piece));
        }
    }
}

/// As plain bytes, for the archive reader.
impl Read for Receiver {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        while self.data.is_empty() && self.zeros == 0 {
            match self.next() {
                Ok(None) => return Ok(0),
                Ok(Some(Piece::Data(data))) => self.data = data,
                Ok(Some(Piece::Zeros(count))) => self.zeros = count,
                Err(error) => {
                    let text = error.to_string();
                    self.failure = Some(error);
                    return Err(io::Error::new(io::ErrorKind::ConnectionAborted, text));
                }
            }
        }
        if self.zeros > 0 {
            let count = usize::try_from(self.zeros).unwrap_or(usize::MAX).min(buffer.len());
            buffer[..count].fill(0);
            self.zeros -= count as u64;
            return Ok(count);
        }
        let count = self.data.len().min(buffer.len());
        buffer[..count].copy_from_slice(&self.data.split_to(count));
        Ok(count)
    }
}
