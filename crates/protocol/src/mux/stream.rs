//! One stream, as its user holds it.

use std::sync::Arc;

use bytes::Bytes;
use prost::Message as _;

use super::state::{QUEUE_LIMIT, StreamNotify};
use super::{Shared, failure_body};
use crate::frame::{Frame, FrameKind, MAX_BULK};
use crate::messages::{Failure, FailureKind, Message, Reply};
use crate::preamble::split_point;

/// Most streams of a session that are widened at a time.
pub const MAX_WIDE: usize = 8;

/// Something that arrived on a stream.
#[derive(Debug, Clone, PartialEq)]
pub enum Incoming {
    /// Control; `None`: a message of a newer version.
    Message(Option<Reply>),
    /// Bulk bytes.
    Data(Bytes),
    /// Bulk bytes of the second kind.
    DataErr(Bytes),
    /// So many zero bytes.
    Zeros(u64),
}

/// Why a stream can no longer be used.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum StreamError {
    /// The peer gave it up, with its reason.
    #[error("{}", .0.message)]
    Reset(Failure),
    /// The session is over.
    #[error("the session is over: {0}")]
    Closed(String),
    /// A body that cannot be read.
    #[error("a message cannot be read")]
    Body,
}

/// One stream. Sending and receiving may go on at the same time, each from one place at a time. Dropping it before
/// both directions have ended tells the peer to stop.
pub struct StreamHandle {
    id: u32,
    shared: Arc<Shared>,
    notify: Arc<StreamNotify>,
}

impl StreamHandle {
    pub(super) const fn new(id: u32, shared: Arc<Shared>, notify: Arc<StreamNotify>) -> Self {
        Self { id, shared, notify }
    }

    /// Number of the stream.
    #[must_use]
    pub const fn id(&self) -> u32 {
        self.id
    }

    /// The next thing that came, in order; `None` after the peer's end. Cancelling is safe: nothing is lost.
    ///
    /// # Errors
    /// [`StreamError`] after everything that came before it was taken.
    pub async fn receive(&self) -> Result<Option<Incoming>, StreamError> {
        loop {
            if let Some(done) = self.try_receive()? {
                return Ok(done);
            }
            self.notify.receive.notified().await;
        }
    }

    /// Like [`Self::receive`] without waiting: `None` when nothing has come yet.
    ///
    /// # Errors
    /// As [`Self::receive`].
    pub fn try_receive(&self) -> Result<Option<Option<Incoming>>, StreamError> {
        let mut state = self.shared.lock();
        let closed = state.closed.clone();
        let Some(stream) = state.streams.get_mut(&self.id) else { return Ok(Some(None)) };
        let Some(frame) = stream.inbound.pop_front() else {
            if let Some(failure) = &stream.reset {
                return Err(StreamError::Reset(failure.clone()));
            }
            if stream.remote_ended {
                return Ok(Some(None));
            }
            return closed.map_or(Ok(None), |reason| Err(StreamError::Closed(reason)));
        };
        let worth_a_frame = stream.receive.consume(frame.cost());
        if worth_a_frame && !stream.remote_ended && closed.is_none() {
            state.owe_credit(self.id);
            drop(state);
            self.shared.output.notify_one();
        } else {
            drop(state);
        }
        let incoming = match frame.kind {
            FrameKind::Message => {
                Incoming::Message(Message::decode(frame.payload).map_err(|_| StreamError::Body)?.reply)
            }
            FrameKind::DataErr => Incoming::DataErr(frame.payload),
            FrameKind::Zeros => {
                Incoming::Zeros(frame.payload.first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes)))
            }
            _ => Incoming::Data(frame.payload),
        };
        Ok(Some(Some(incoming)))
    }

    /// Lets the host send more ahead (agent), for bulk data that goes to a disk. Does nothing towards a host that does
    /// not know of it, and once [`MAX_WIDE`] streams of the session are that wide: memory stays bounded.
    pub fn widen(&self) {
        let mut state = self.shared.lock();
        let wide = state.streams.values().filter(|stream| stream.receive.is_wide()).count();
        if !state.may_widen || state.closed.is_some() || wide >= MAX_WIDE {
            return;
        }
        let Some(stream) = state.streams.get_mut(&self.id) else { return };
        if stream.receive.widen() {
            state.owe_credit(self.id);
            drop(state);
            self.shared.output.notify_one();
        }
    }

    /// Sends bulk bytes of any length; waits for credit. If cancelled, a first part may have been sent.
    ///
    /// # Errors
    /// [`StreamError`] when the peer does not want them any more.
    pub async fn send_data(&self, data: Bytes) -> Result<(), StreamError> {
        self.send_bulk(FrameKind::Data, data).await
    }

    /// Sends bulk bytes of the second kind, as [`Self::send_data`].
    ///
    /// # Errors
    /// As [`Self::send_data`].
    pub async fn send_data_err(&self, data: Bytes) -> Result<(), StreamError> {
        self.send_bulk(FrameKind::DataErr, data).await
    }

    async fn send_bulk(&self, kind: FrameKind, mut data: Bytes) -> Result<(), StreamError> {
        while !data.is_empty() {
            let mut part = data.split_to(data.len().min(MAX_BULK));
            if let Some(at) = split_point(&part) {
                let rest = part.split_off(at);
                self.send(Frame::new(kind, self.id, part)).await?;
                part = rest;
                // The rest may hold the mark again; then it goes back in front of what follows.
                while let Some(at) = split_point(&part) {
                    let rest = part.split_off(at);
                    self.send(Frame::new(kind, self.id, part)).await?;
                    part = rest;
                }
            }
            self.send(Frame::new(kind, self.id, part)).await?;
        }
        Ok(())
    }

    /// Sends a run of zero bytes.
    ///
    /// # Errors
    /// As [`Self::send_data`].
    pub async fn send_zeros(&self, count: u64) -> Result<(), StreamError> {
        self.send(Frame::new(FrameKind::Zeros, self.id, Bytes::copy_from_slice(&count.to_le_bytes()))).await
    }

    /// Sends a control message.
    ///
    /// # Errors
    /// As [`Self::send_data`].
    pub async fn send_message(&self, reply: Reply) -> Result<(), StreamError> {
        let body = Message { reply: Some(reply) }.encode_to_vec();
        self.send(Frame::new(FrameKind::Message, self.id, body.into())).await
    }

    async fn send(&self, frame: Frame) -> Result<(), StreamError> {
        loop {
            {
                let mut state = self.shared.lock();
                if let Some(reason) = &state.closed {
                    return Err(StreamError::Closed(reason.clone()));
                }
                let Some(stream) = state.streams.get_mut(&self.id) else {
                    return Err(StreamError::Closed("the stream has ended".to_owned()));
                };
                if let Some(failure) = &stream.reset {
                    return Err(StreamError::Reset(failure.clone()));
                }
                if stream.queued_bytes < QUEUE_LIMIT && stream.send.take(frame.cost()) {
                    state.queue(self.id, frame);
                    drop(state);
                    self.shared.output.notify_one();
                    return Ok(());
                }
            }
            self.notify.send.notified().await;
        }
    }

    /// Says that nothing more comes from this side. Doing it twice is fine.
    pub fn end(&self) {
        self.finish(FrameKind::End, Bytes::new());
    }

    /// Gives the stream up with a reason, behind what was sent before. After [`Self::end`] it does nothing.
    pub fn fail(&self, kind: FailureKind, message: &str) {
        self.finish(FrameKind::Reset, failure_body(kind, message));
    }

    fn finish(&self, kind: FrameKind, body: Bytes) {
        let mut state = self.shared.lock();
        if state.closed.is_some() {
            return;
        }
        let Some(stream) = state.streams.get_mut(&self.id) else { return };
        if stream.local_ended || stream.reset.is_some() {
            return;
        }
        stream.local_ended = true;
        if kind == FrameKind::Reset {
            // The peer takes a reset as the end of both directions, as soon as it has it.
            stream.given_up = !stream.remote_ended;
            stream.remote_ended = true;
        }
        state.queue(self.id, Frame::new(kind, self.id, body));
        drop(state);
        self.shared.output.notify_one();
    }
}

impl Drop for StreamHandle {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        let closed = state.closed.is_some();
        let Some(stream) = state.streams.get_mut(&self.id) else { return };
        stream.orphan = true;
        stream.inbound.clear();
        let cancel = || failure_body(FailureKind::Cancelled, "not wanted any more");
        if closed || stream.reset.is_some() {
            stream.queue.clear();
        } else if !stream.local_ended {
            // What waits to be sent is of no use to anyone. The opening itself must go out if it has not yet.
            stream.queue.retain(|frame| frame.kind == FrameKind::Open);
            stream.queued_bytes = stream.queue.iter().map(Frame::cost).sum();
            let body = cancel();
            state.queue(self.id, Frame::new(FrameKind::Reset, self.id, body));
        } else if !stream.remote_ended {
            let body = cancel();
            state.queue(self.id, Frame::new(FrameKind::Reset, self.id, body));
        }
        if state.streams.get(&self.id).is_some_and(|stream| stream.queue.is_empty()) {
            state.streams.remove(&self.id);
        }
        drop(state);
        self.shared.output.notify_one();
    }
}
