//! The streams of one session: frames in, frames out, credit, no I/O.
//!
//! ```text
//!   socket ─▶ Decoder ─▶ Mux::receive ─▶ StreamHandle::receive ─▶ consumer
//!   socket ◀─ encode ◀─ Mux::take_output ◀─ StreamHandle::send_* ◀─ producer
//! ```
//!
//! The host opens streams, the agent accepts them. A sender waits while its stream has no credit or too much queued;
//! a receiver gives credit back as it takes frames. Frames of the session (credit, ping) leave first, then streams take
//! turns, control before bulk. Cancelling any future of this module is safe: a frame was queued whole or not at all.

mod state;
mod stream;

use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;
use prost::Message as _;
use tokio::sync::{Notify, oneshot, watch};

use crate::frame::{Frame, FrameKind, MAX_CONTROL};
use crate::messages::{Failure, FailureKind, Request, features};
use crate::preamble::split_point;
pub use state::Violation;
use state::{State, StreamState};
pub use stream::{Incoming, MAX_WIDE, StreamError, StreamHandle};

/// Most streams a host opens at a time.
pub const MAX_STREAMS: usize = 256;

/// Which end of the channel this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Opens streams and asks for pongs.
    Host,
    /// Accepts streams and answers pings.
    Agent,
}

/// Why a stream could not be opened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// The session is over.
    #[error("the session is over: {0}")]
    Closed(String),
    /// All streams are in use.
    #[error("{MAX_STREAMS} operations are under way on this channel already: wait for some to end")]
    TooMany,
    /// The request does not fit into a frame.
    #[error(
        "the request takes {0} bytes, more than the {MAX_CONTROL} that fit into one frame: send large data as a file or on standard input"
    )]
    TooLong(usize),
    /// The request contains the bytes that begin a session.
    #[error("the request contains a byte sequence that is reserved for the channel")]
    Reserved,
}

pub(crate) struct Shared {
    pub(crate) state: Mutex<State>,
    pub(crate) output: Notify,
    accepted: Notify,
    closed: watch::Sender<Option<String>>,
}

impl Shared {
    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        // A panic while the lock is held leaves plain queues, whole in themselves: going on is safe.
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// The multiplexer of one session. Clones are handles to the same session.
#[derive(Clone)]
pub struct Mux {
    shared: Arc<Shared>,
}

impl Mux {
    /// A session without streams.
    #[must_use]
    pub fn new(role: Role) -> Self {
        Self {
            shared: Arc::new(Shared {
                state: Mutex::new(State::new(role)),
                output: Notify::new(),
                accepted: Notify::new(),
                closed: watch::Sender::new(None),
            }),
        }
    }

    /// A session with a peer that announced these [`features`].
    #[must_use]
    pub fn with_features(role: Role, features: u64) -> Self {
        let mux = Self::new(role);
        mux.shared.lock().may_widen = features & features::WIDE_WINDOWS != 0;
        mux
    }

    /// Takes a frame that came from the peer.
    ///
    /// # Errors
    /// [`Violation`] if the peer broke a rule; the caller closes the session then.
    pub fn receive(&self, frame: Frame) -> Result<(), Violation> {
        let effect = self.shared.lock().receive(frame)?;
        if effect.output {
            self.shared.output.notify_one();
        }
        if effect.accepted {
            self.shared.accepted.notify_one();
        }
        Ok(())
    }

    /// Moves frames that are to be sent to `frames`, until they are about `limit` bytes or none is left; returns how
    /// many bytes they are.
    pub fn take_output(&self, frames: &mut Vec<Frame>, limit: usize) -> usize {
        self.shared.lock().take_output(frames, limit)
    }

    /// Waits until there may be something to send, or the session was closed.
    pub async fn wait_output(&self) {
        self.shared.output.notified().await;
    }

    /// Opens a stream (host).
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn open(&self, request: &Request) -> Result<StreamHandle, OpenError> {
        let body = request.encode_to_vec();
        if body.len() > MAX_CONTROL {
            return Err(OpenError::TooLong(body.len()));
        }
        if split_point(&body).is_some() {
            return Err(OpenError::Reserved);
        }
        let mut state = self.shared.lock();
        if let Some(reason) = &state.closed {
            return Err(OpenError::Closed(reason.clone()));
        }
        if state.streams.len() >= MAX_STREAMS {
            return Err(OpenError::TooMany);
        }
        // Numbers are not used twice in a session; four thousand million streams are never reached.
        let Some(next) = state.last_id.checked_add(1) else {
            return Err(OpenError::Closed("all stream numbers are used up".to_owned()));
        };
        state.last_id = next;
        let stream = StreamState::default();
        let notify = Arc::clone(&stream.notify);
        state.streams.insert(next, stream);
        state.queue(next, Frame::new(FrameKind::Open, next, Bytes::from(body)));
        drop(state);
        self.shared.output.notify_one();
        Ok(StreamHandle::new(next, Arc::clone(&self.shared), notify))
    }

    /// The next stream opened by the host (agent); `None` when the session is over.
    pub async fn accept(&self) -> Option<(StreamHandle, Request)> {
        loop {
            {
                let mut state = self.shared.lock();
                if let Some((id, request)) = state.accepted.pop_front() {
                    let notify = state.streams.get(&id).map(|stream| Arc::clone(&stream.notify));
                    drop(state);
                    if let Some(notify) = notify {
                        return Some((StreamHandle::new(id, Arc::clone(&self.shared), notify), request));
                    }
                    continue;
                }
                if state.closed.is_some() {
                    return None;
                }
            }
            self.shared.accepted.notified().await;
        }
    }

    /// Sends a ping (host); the receiver fires when its pong has come, and fails when the session ends.
    #[must_use]
    pub fn ping(&self) -> oneshot::Receiver<()> {
        let (sender, receiver) = oneshot::channel();
        let mut state = self.shared.lock();
        if state.closed.is_none() {
            state.ping(sender);
        }
        drop(state);
        self.shared.output.notify_one();
        receiver
    }

    /// Ends the session: every stream, ping and waiter learns of it. Only the first reason counts.
    pub fn close(&self, reason: impl Into<String>) {
        let mut state = self.shared.lock();
        if state.closed.is_some() {
            return;
        }
        let reason = reason.into();
        state.close(reason.clone());
        drop(state);
        self.shared.closed.send_replace(Some(reason));
        self.shared.output.notify_one();
        self.shared.accepted.notify_one();
    }

    /// Becomes `Some` with the reason when the session has ended.
    #[must_use]
    pub fn closed(&self) -> watch::Receiver<Option<String>> {
        self.shared.closed.subscribe()
    }

    /// Returns true if the session has ended.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.shared.lock().closed.is_some()
    }
}

/// The body of a `Reset` frame; the text is cut to what fits.
pub(crate) fn failure_body(kind: FailureKind, message: &str) -> Bytes {
    let mut end = message.len().min(2000);
    while !message.is_char_boundary(end) {
        end -= 1;
    }
    Failure { kind: kind.into(), message: message[..end].to_owned() }.encode_to_vec().into()
}
