//! Bulk data of a stream, from and to a helper thread.

use std::io::{self, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use microvm_protocol::mux::{Incoming, StreamError, StreamHandle};
use tokio::runtime::Handle;

use super::failure::AgentResult;

/// One piece of content.
pub(crate) enum Piece {
    Data(Bytes),
    Zeros(u64),
}

/// Bulk data from the host.
pub(crate) struct Receiver {
    stream: Arc<StreamHandle>,
    runtime: Handle,
    data: Bytes,
    zeros: u64,
    /// Bytes received so far, runs of zeros counted in full.
    pub(crate) received: u64,
    /// Failure that ended the stream early.
    pub(crate) failure: Option<StreamError>,
}

impl Receiver {
    pub(crate) fn new(stream: &Arc<StreamHandle>) -> Self {
        // Bulk data goes to a disk, which is slow at times: a wider window keeps the channel busy meanwhile.
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
    pub(crate) fn next(&mut self) -> Result<Option<Piece>, StreamError> {
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

/// Plain bytes, for the reader of archives.
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

/// Bulk data to the host.
pub(crate) struct Sender<'a> {
    pub(crate) stream: &'a StreamHandle,
    pub(crate) runtime: &'a Handle,
    /// Counts what was sent, for a watchdog.
    pub(crate) sent: Option<&'a AtomicU64>,
}

impl Sender<'_> {
    /// Sends bytes. Blocks until the stream has credit for them.
    ///
    /// # Errors
    /// If the stream ended.
    pub(crate) fn data(&self, bytes: impl Into<Bytes>) -> AgentResult<()> {
        self.runtime.block_on(self.stream.send_data(bytes.into()))?;
        self.note();
        Ok(())
    }

    /// Sends a run of zero bytes as their count.
    ///
    /// # Errors
    /// As for [`Self::data`].
    pub(crate) fn zeros(&self, count: u64) -> AgentResult<()> {
        if count == 0 {
            return Ok(());
        }
        self.runtime.block_on(self.stream.send_zeros(count))?;
        self.note();
        Ok(())
    }

    fn note(&self) {
        if let Some(sent) = self.sent {
            sent.fetch_add(1, Ordering::Relaxed);
        }
    }
}
