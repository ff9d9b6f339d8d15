//! State of a session, behind one lock that is never held for long.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use prost::Message as _;
use tokio::sync::{Notify, oneshot};

use super::{MAX_STREAMS, Role, failure_body};
use crate::flow::{ReceiveWindow, SendWindow};
use crate::frame::{Frame, FrameKind};
use crate::messages::{Failure, FailureKind, Request};

/// A stream holds its senders up when so many bytes wait to leave.
pub(super) const QUEUE_LIMIT: usize = 256 * 1024;

/// A rule of the protocol that the peer broke. The session cannot go on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// A frame kind that this side does not expect (now).
    #[error("an unexpected {0:?} frame")]
    Unexpected(FrameKind),
    /// A frame for a stream that was never opened.
    #[error("a {kind:?} frame for stream {stream}, which was never opened")]
    UnknownStream {
        /// Kind of the frame.
        kind: FrameKind,
        /// Its stream.
        stream: u32,
    },
    /// More data than there was credit for.
    #[error("more data on stream {0} than there was credit for")]
    Window(u32),
    /// More credit than a window holds.
    #[error("more credit on stream {0} than a window holds")]
    Credit(u32),
    /// Something after the end of a stream.
    #[error("a {kind:?} frame on stream {stream} after its end")]
    AfterEnd {
        /// Kind of the frame.
        kind: FrameKind,
        /// Its stream.
        stream: u32,
    },
    /// A body that is not the message it should be.
    #[error("the body of a {0:?} frame cannot be read")]
    Body(FrameKind),
}

#[derive(Debug, Default)]
pub(crate) struct StreamNotify {
    pub(crate) receive: Notify,
    pub(crate) send: Notify,
}

#[derive(Default)]
pub(crate) struct StreamState {
    pub(crate) inbound: VecDeque<Frame>,
    pub(crate) receive: ReceiveWindow,
    /// It is in the line of streams that give credit back.
    credit_owed: bool,
    pub(crate) send: SendWindow,
    pub(crate) queue: VecDeque<Frame>,
    pub(crate) queued_bytes: usize,
    pub(crate) local_ended: bool,
    pub(crate) remote_ended: bool,
    /// This side gave it up before the peer's end: what the peer sent before it knew is dropped.
    pub(crate) given_up: bool,
    pub(crate) reset: Option<Failure>,
    /// No handle is left: the entry goes when its queue is empty.
    pub(crate) orphan: bool,
    pub(crate) notify: Arc<StreamNotify>,
}

/// Effect of a received frame.
#[derive(Default)]
pub(super) struct Effect {
    pub(super) output: bool,
    pub(super) accepted: bool,
}

pub(crate) struct State {
    role: Role,
    pub(crate) streams: HashMap<u32, StreamState>,
    pub(crate) last_id: u32,
    pub(crate) urgent: VecDeque<Frame>,
    /// Streams that give credit back with the next output, each once however much it is: a peer that sends without end
    /// and never reads must not make frames pile up here.
    owing: VecDeque<u32>,
    /// Streams that began to wait with control: first, and in the order they came, as streams are opened in that of
    /// their numbers.
    prompt: VecDeque<u32>,
    ready: VecDeque<u32>,
    pub(crate) accepted: VecDeque<(u32, Request)>,
    pings: HashMap<u64, oneshot::Sender<()>>,
    next_ping: u64,
    pub(crate) closed: Option<String>,
    /// The peer accepts windows that are widened.
    pub(crate) may_widen: bool,
}

impl State {
    pub(super) fn new(role: Role) -> Self {
        Self {
            role,
            streams: HashMap::new(),
            last_id: 0,
            urgent: VecDeque::new(),
            owing: VecDeque::new(),
            prompt: VecDeque::new(),
            ready: VecDeque::new(),
            accepted: VecDeque::new(),
            pings: HashMap::new(),
            next_ping: 0,
            closed: None,
            may_widen: false,
        }
    }

    /// Queues a frame behind those of its stream; the stream takes its turn, at once if the frame is control.
    pub(crate) fn queue(&mut self, id: u32, frame: Frame) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        let bulk = matches!(frame.kind, FrameKind::Data | FrameKind::DataErr) && frame.payload.len() > 4096;
        stream.queued_bytes += frame.cost();
        stream.queue.push_back(frame);
        if stream.queue.len() > 1 {
            return;
        }
        if bulk {
            self.ready.push_back(id);
        } else {
            self.prompt.push_back(id);
        }
    }

    pub(super) fn take_output(&mut self, frames: &mut Vec<Frame>, limit: usize) -> usize {
        let mut bytes = 0;
        while bytes < limit {
            let urgent = self.urgent.pop_front().or_else(|| self.next_credit());
            let Some(frame) = urgent.or_else(|| self.next_of_streams()) else { break };
            bytes += frame.cost();
            frames.push(frame);
        }
        bytes
    }

    /// Notes that a stream has credit to give back.
    pub(super) fn owe_credit(&mut self, id: u32) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        if !std::mem::replace(&mut stream.credit_owed, true) {
            self.owing.push_back(id);
        }
    }

    fn next_credit(&mut self) -> Option<Frame> {
        loop {
            let id = self.owing.pop_front()?;
            // A stream whose peer has ended needs no credit any more.
            let Some(stream) = self.streams.get_mut(&id) else { continue };
            stream.credit_owed = false;
            if !stream.remote_ended {
                let bytes = stream.receive.grant().to_le_bytes();
                return Some(Frame::new(FrameKind::Credit, id, Bytes::copy_from_slice(&bytes)));
            }
        }
    }

    fn next_of_streams(&mut self) -> Option<Frame> {
        loop {
            let id = self.prompt.pop_front().or_else(|| self.ready.pop_front())?;
            let Some(stream) = self.streams.get_mut(&id) else { continue };
            let Some(frame) = stream.queue.pop_front() else { continue };
            let before = stream.queued_bytes;
            stream.queued_bytes -= frame.cost();
            if before > QUEUE_LIMIT / 2 && stream.queued_bytes <= QUEUE_LIMIT / 2 {
                stream.notify.send.notify_one();
            }
            if !stream.queue.is_empty() {
                self.ready.push_back(id);
            } else if stream.orphan {
                self.streams.remove(&id);
            }
            return Some(frame);
        }
    }

    pub(super) fn ping(&mut self, sender: oneshot::Sender<()>) {
        self.next_ping += 1;
        // Whoever gave up waiting is forgotten here, so that the table stays small.
        self.pings.retain(|_, waiting| !waiting.is_closed());
        self.pings.insert(self.next_ping, sender);
        self.urgent.push_back(Frame::new(
            FrameKind::Ping,
            0,
            Bytes::copy_from_slice(&self.next_ping.to_le_bytes()),
        ));
    }

    pub(super) fn receive(&mut self, frame: Frame) -> Result<Effect, Violation> {
        let kind = frame.kind;
        match (kind, self.role) {
            (FrameKind::Ping, Role::Agent) => {
                self.urgent.push_back(Frame::new(FrameKind::Pong, 0, frame.payload));
                Ok(Effect { output: true, accepted: false })
            }
            (FrameKind::Pong, Role::Host) => {
                let number = frame.payload.first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
                if let Some(waiting) = self.pings.remove(&number) {
                    // The waiter may have given up.
                    let _ = waiting.send(());
                }
                Ok(Effect::default())
            }
            (FrameKind::Open, Role::Agent) => self.opened(frame),
            (
                FrameKind::Hello
                | FrameKind::HelloReply
                | FrameKind::Open
                | FrameKind::Ping
                | FrameKind::Pong,
                _,
            ) => Err(Violation::Unexpected(kind)),
            _ => self.for_stream(frame),
        }
    }

    fn opened(&mut self, frame: Frame) -> Result<Effect, Violation> {
        let id = frame.stream;
        if id <= self.last_id {
            return Err(Violation::Unexpected(FrameKind::Open));
        }
        self.last_id = id;
        let request = Request::decode(frame.payload).map_err(|_| Violation::Body(FrameKind::Open))?;
        // Streams that this side has not finished sending count here but no longer at the host.
        if self.streams.len() >= 2 * MAX_STREAMS {
            self.urgent.push_back(Frame::new(
                FrameKind::Reset,
                id,
                failure_body(FailureKind::Exhausted, "too many operations are under way"),
            ));
            return Ok(Effect { output: true, accepted: false });
        }
        self.streams.insert(id, StreamState::default());
        self.accepted.push_back((id, request));
        Ok(Effect { output: false, accepted: true })
    }

    fn for_stream(&mut self, frame: Frame) -> Result<Effect, Violation> {
        let (kind, id) = (frame.kind, frame.stream);
        let Some(stream) = self.streams.get_mut(&id) else {
            // A stream of the past: what the peer sent before it knew is dropped.
            return if id == 0 || id > self.last_id {
                Err(Violation::UnknownStream { kind, stream: id })
            } else {
                Ok(Effect::default())
            };
        };
        match kind {
            FrameKind::Credit => {
                let bytes = frame.payload.first_chunk().map_or(0, |bytes| u32::from_le_bytes(*bytes));
                if !stream.send.grant(bytes) {
                    return Err(Violation::Credit(id));
                }
                stream.notify.send.notify_one();
            }
            FrameKind::Reset => {
                let failure = Failure::decode(frame.payload).map_err(|_| Violation::Body(kind))?;
                stream.reset.get_or_insert(failure);
                stream.remote_ended = true;
                stream.queue.clear();
                stream.queued_bytes = 0;
                stream.notify.receive.notify_one();
                stream.notify.send.notify_one();
                if stream.orphan {
                    self.streams.remove(&id);
                }
            }
            _ if stream.given_up => {}
            _ if stream.remote_ended => return Err(Violation::AfterEnd { kind, stream: id }),
            FrameKind::End => {
                stream.remote_ended = true;
                stream.notify.receive.notify_one();
            }
            _ => {
                if !stream.receive.receive(frame.cost()) {
                    return Err(Violation::Window(id));
                }
                if !stream.orphan {
                    stream.inbound.push_back(frame);
                    stream.notify.receive.notify_one();
                }
            }
        }
        Ok(Effect::default())
    }

    pub(super) fn close(&mut self, reason: String) {
        self.closed = Some(reason);
        self.pings.clear();
        self.urgent.clear();
        self.owing.clear();
        self.prompt.clear();
        self.ready.clear();
        self.accepted.clear();
        for stream in self.streams.values_mut() {
            stream.queue.clear();
            stream.queued_bytes = 0;
            stream.notify.receive.notify_one();
            stream.notify.send.notify_one();
        }
    }
}
