//! One session over one socket: reader, writer, heartbeat.

use std::os::fd::AsRawFd as _;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use microvm_ports::GuestError;
use microvm_ports::branch::InputProbe;
use microvm_ports::guest::CloseReason;
use microvm_protocol::Decoder;
use microvm_protocol::messages::{Operation, Request};
use microvm_protocol::mux::{Mux, Role, StreamHandle};
use tokio::io::AsyncReadExt as _;
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{Notify, watch};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::Instant;

use crate::config::GuestConfig;
use crate::lists::ListMemory;
use crate::silence::{Beat, Silence};

/// Bytes written to the socket in a row before control frames get their turn.
const WRITE_BATCH: usize = 256 * 1024;

/// Parts in which the time for a step of a transfer is counted.
const STEP_PARTS: u32 = 5;

/// A session. Its tasks end with the last handle that owns it.
pub(crate) struct Channel {
    mux: Mux,
    closed: watch::Sender<Option<CloseReason>>,
    heartbeats_expected: AtomicBool,
    heartbeats_changed: Notify,
    /// Counts portions of bytes that came, for the heartbeat.
    heard: AtomicU64,
    tasks: Mutex<JoinSet<()>>,
    /// Held while bytes are handed to the socket.
    sending: Arc<tokio::sync::Mutex<()>>,
    /// The socket, for as long as the session writes to it: holding it longer would keep the other side from its end.
    socket: std::sync::Weak<OwnedWriteHalf>,
    /// Shared with the channels of all guests.
    pub(crate) lists: ListMemory,
    /// Longest time a guest may take for the next step of a transfer.
    pub(crate) step_timeout: Duration,
}

impl Channel {
    /// Starts the session's tasks after the handshake.
    pub(crate) fn start(
        socket: UnixStream,
        decoder: Decoder,
        config: &GuestConfig,
        lists: ListMemory,
    ) -> Arc<Self> {
        let (reader, writer) = socket.into_split();
        let writer = Arc::new(writer);
        let channel = Arc::new(Self {
            mux: Mux::new(Role::Host),
            closed: watch::Sender::new(None),
            heartbeats_expected: AtomicBool::new(true),
            heartbeats_changed: Notify::new(),
            heard: AtomicU64::new(0),
            tasks: Mutex::new(JoinSet::new()),
            sending: Arc::default(),
            socket: Arc::downgrade(&writer),
            lists,
            step_timeout: config.step_timeout(),
        });
        // Tasks hold the session weakly where they wait: its end is the drop of its last user.
        channel.spawn(read(Arc::downgrade(&channel), channel.mux.clone(), reader, decoder));
        let sending = Arc::clone(&channel.sending);
        channel.spawn(write(Arc::downgrade(&channel), channel.mux.clone(), writer, sending));
        channel.spawn(heartbeat(Arc::downgrade(&channel), config.clone()));
        channel
    }

    /// Runs a task for as long as the session has users.
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) -> AbortHandle {
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        while tasks.try_join_next().is_some() {}
        tasks.spawn(task)
    }

    /// Waits for the next step of a transfer. A guest that answers pings and nothing else is alive, but not for this.
    pub(crate) async fn step<T>(
        &self,
        action: &'static str,
        step: impl Future<Output = Result<T, GuestError>> + Send,
    ) -> Result<T, GuestError> {
        let after = self.step_timeout;
        let mut step = std::pin::pin!(step);
        let mut waited = 0;
        loop {
            let expected = self.heartbeats_expected.load(Ordering::Acquire);
            // In parts, because the guest may be paused in the middle of the wait.
            if let Ok(result) = tokio::time::timeout(after / STEP_PARTS, step.as_mut()).await {
                return result;
            }
            // Time in which the guest stood still is not its fault.
            if expected && self.heartbeats_expected.load(Ordering::Acquire) {
                waited += 1;
            }
            if waited == STEP_PARTS {
                return Err(GuestError::Timeout { action, after });
            }
        }
    }

    /// Opens a stream.
    pub(crate) fn open(&self, operation: Operation) -> Result<StreamHandle, GuestError> {
        self.mux.open(&Request { operation: Some(operation) }).map_err(|error| self.open_failed(&error))
    }

    /// Ends the session; only the first reason counts.
    pub(crate) fn close_with(&self, reason: CloseReason) {
        let text = reason.to_string();
        self.closed.send_if_modified(|closed| {
            let first = closed.is_none();
            if first {
                *closed = Some(reason);
            }
            first
        });
        self.mux.close(text);
    }

    /// Keeps bytes back until the answer is dropped.
    pub(crate) async fn hold_input(&self) -> InputProbe {
        let held = Arc::clone(&self.sending).lock_owned().await;
        let socket = std::sync::Weak::clone(&self.socket);
        Box::new(move || {
            // Moved into the answer, and so given back when that is dropped.
            let _held = &held;
            socket.upgrade().map_or(0, |socket| unread(&socket))
        })
    }

    pub(crate) fn closed(&self) -> watch::Receiver<Option<CloseReason>> {
        self.closed.subscribe()
    }

    pub(crate) fn close_reason(&self) -> CloseReason {
        self.closed.borrow().clone().unwrap_or(CloseReason::EndOfStream)
    }

    pub(crate) fn expect_heartbeats(&self, expected: bool) {
        self.heartbeats_expected.store(expected, Ordering::Release);
        self.heartbeats_changed.notify_one();
    }

    /// One round trip.
    pub(crate) async fn ping(&self) -> Result<Duration, GuestError> {
        let started = Instant::now();
        match self.mux.ping().await {
            Ok(()) => Ok(started.elapsed()),
            Err(_) => Err(GuestError::Closed(self.close_reason())),
        }
    }
}

impl Drop for Channel {
    fn drop(&mut self) {
        self.close_with(CloseReason::Local);
    }
}

type WeakChannel = std::sync::Weak<Channel>;

fn end(channel: &WeakChannel, mux: &Mux, reason: CloseReason) {
    match channel.upgrade() {
        Some(channel) => channel.close_with(reason),
        None => mux.close(reason.to_string()),
    }
}

async fn read(channel: WeakChannel, mux: Mux, mut socket: OwnedReadHalf, mut decoder: Decoder) {
    let mut closed = mux.closed();
    let reason = loop {
        // Before the socket is read: what came with the handshake may hold frames.
        let frame = match decoder.next_frame() {
            Ok(frame) => frame,
            Err(error) => break CloseReason::Protocol(error.to_string()),
        };
        if let Some(frame) = frame {
            if let Err(violation) = mux.receive(frame) {
                break CloseReason::Protocol(violation.to_string());
            }
            continue;
        }
        let result = tokio::select! {
            result = socket.read_buf(decoder.buffer()) => result,
            _ = closed.wait_for(Option::is_some) => return,
        };
        match result {
            Ok(count) if count > 0 => {
                let Some(channel) = channel.upgrade() else { return };
                channel.heard.fetch_add(1, Ordering::Release);
            }
            // A reset connection is an end as well: the machine is gone.
            Ok(_) | Err(_) => break CloseReason::EndOfStream,
        }
    };
    end(&channel, &mux, reason);
}

/// Bytes in the socket that the other side has not read (SIOCOUTQ, unix(7)); what it has read a part of counts whole.
#[allow(unsafe_code)]
fn unread(socket: &OwnedWriteHalf) -> u64 {
    let socket: &UnixStream = (*socket).as_ref();
    let mut count: libc::c_int = 0;
    // SAFETY: the descriptor is open and the request writes one int.
    // Needed: neither the standard library nor nix nor rustix has a call for it.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::TIOCOUTQ, &raw mut count) };
    if result == 0 { u64::try_from(count).unwrap_or(0) } else { 0 }
}

/// Hands over as much as the socket takes, never while somebody holds the sending.
async fn send(
    socket: &OwnedWriteHalf,
    mut bytes: &[u8],
    sending: &tokio::sync::Mutex<()>,
) -> std::io::Result<()> {
    while !bytes.is_empty() {
        socket.writable().await?;
        // Only now: while the socket is full the lock would be held for as long as the guest likes.
        let _sending = sending.lock().await;
        match socket.try_write(bytes) {
            Ok(count) => bytes = &bytes[count..],
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

async fn write(
    channel: WeakChannel,
    mux: Mux,
    socket: Arc<OwnedWriteHalf>,
    sending: Arc<tokio::sync::Mutex<()>>,
) {
    let mut closed = mux.closed();
    let (mut frames, mut bytes) = (Vec::new(), Vec::with_capacity(WRITE_BATCH));
    loop {
        if mux.take_output(&mut frames, WRITE_BATCH / 2) == 0 {
            if mux.is_closed() {
                return;
            }
            mux.wait_output().await;
            continue;
        }
        for frame in frames.drain(..) {
            frame.encode_into(&mut bytes);
        }
        let result = tokio::select! {
            result = send(&socket, &bytes, &sending) => result,
            _ = closed.wait_for(Option::is_some) => return,
        };
        if result.is_err() {
            return end(&channel, &mux, CloseReason::EndOfStream);
        }
        bytes.clear();
    }
}

async fn heartbeat(channel: WeakChannel, config: GuestConfig) {
    let mut heard = 0;
    let mut silence = Silence::new(&config);
    loop {
        {
            // Let go of before the sleep: a session whose last user has gone must end.
            let Some(channel) = channel.upgrade() else { return };
            if channel.mux.is_closed() {
                return;
            }
            let now = channel.heard.load(Ordering::Acquire);
            let expected = channel.heartbeats_expected.load(Ordering::Acquire);
            let quiet = now == heard && expected;
            heard = now;
            match silence.tick(Instant::now(), quiet) {
                Beat::Rest => {}
                // The pong is noticed as any other byte; nobody waits for this one.
                Beat::Ping => drop(channel.mux.ping()),
                Beat::Lost => {
                    channel.close_with(CloseReason::HeartbeatLost(config.heartbeat_timeout));
                    return;
                }
            }
        }
        // A heartbeat is a matter of time: this is its clock.
        tokio::time::sleep(silence.interval).await;
    }
}
