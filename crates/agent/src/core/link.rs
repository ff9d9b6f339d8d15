//! Moves frames between the port and the session, and finds the beginning of each session.

use std::sync::Arc;
use std::time::Duration;

use microvm_protocol::messages::{Hello, HelloReply, features};
use microvm_protocol::mux::{Mux, Role};
use microvm_protocol::{Decoder, Frame, FrameKind, HEADER_LENGTH, PREAMBLE, PROTOCOL_VERSION, preamble};
use prost::Message as _;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::agent::Agent;
use super::console::say;
use super::platform::Platform;
use super::port::{Boundaries, Port, ReadOutcome};

/// Reads in a row before others get a turn: 64 pages.
const READS_PER_TURN: usize = 64;
/// Bytes handed to the device in a row.
const WRITE_BATCH: usize = 128 * 1024;

/// Time without a host after which a session ends. One host may follow another so quickly that its greeting is read before
/// the kernel reports the hang-up between them: that hang-up must not end the new session.
const HANG_UP_GRACE: Duration = Duration::from_secs(1);

/// One port with at most one session on it.
pub(crate) struct Link<P: Platform, D: Port> {
    agent: Arc<Agent<P>>,
    port: D,
    decoder: Decoder,
    session: Option<Mux>,
    tasks: JoinSet<()>,
    frames: Vec<Frame>,
    output: Vec<u8>,
    written: usize,
    /// A preamble was seen; its `Hello` has not come yet.
    greeting: bool,
    /// Time of the hang-up, if no host is connected; not earlier than the session.
    alone_since: Option<Instant>,
}

impl<P: Platform, D: Port> Link<P, D> {
    /// A link without a session.
    pub(crate) fn new(agent: Arc<Agent<P>>, port: D) -> Self {
        Self {
            agent,
            port,
            decoder: Decoder::new(),
            session: None,
            tasks: JoinSet::new(),
            frames: Vec::new(),
            output: Vec::new(),
            written: 0,
            greeting: false,
            alone_since: None,
        }
    }

    /// Serves sessions until the device fails. With `once`, until the first one has ended.
    pub(crate) async fn serve(mut self, once: bool) -> std::io::Result<()> {
        // A read costs a system call: the port is read only after it has changed.
        let mut changed = true;
        let mut hung_up = false;
        loop {
            if changed {
                let alone = std::mem::take(&mut hung_up);
                for _ in 0..READS_PER_TURN {
                    match self.read()? {
                        ReadOutcome::Bytes => {}
                        ReadOutcome::Nothing => changed = false,
                        ReadOutcome::HungUp => (changed, hung_up) = (false, true),
                    }
                    if !changed {
                        break;
                    }
                }
                // The kernel reports a host's first bytes and the host itself in either order. A host that is there shows
                // as room to write, and as nothing else.
                if alone != hung_up {
                    self.port.want_room(hung_up)?;
                }
            }
            if hung_up && once {
                self.end_session("the host hung up");
                return Ok(());
            }
            self.alone_since = hung_up.then(|| self.alone_since.unwrap_or_else(Instant::now));
            let more = !hung_up && self.write()?;
            while self.tasks.try_join_next().is_some() {}
            if changed || more {
                tokio::task::yield_now().await;
                continue;
            }
            let session = self.session.clone();
            let output = async {
                match &session {
                    Some(session) if !hung_up => session.wait_output().await,
                    _ => std::future::pending().await,
                }
            };
            let alone_since = self.alone_since;
            let abandoned = async {
                match alone_since {
                    Some(since) if session.is_some() => tokio::time::sleep_until(since + HANG_UP_GRACE).await,
                    _ => std::future::pending().await,
                }
            };
            tokio::select! {
                result = self.port.changed() => {
                    result?;
                    changed = true;
                }
                () = output => {}
                () = abandoned => {
                    self.end_session("the host hung up");
                    // Half a frame of the old host must not become the beginning of the next one's.
                    self.decoder.clear();
                }
            }
        }
    }

    fn read(&mut self) -> std::io::Result<ReadOutcome> {
        let buffer = self.decoder.buffer();
        let before = buffer.len();
        let outcome = self.port.read(buffer)?;
        if let ReadOutcome::Bytes = outcome {
            // A new host begins in a read of its own. In the middle of a session the preamble cannot be payload: senders
            // keep it out of payloads.
            let begins = self.port.boundaries() == Boundaries::Kept
                && self.decoder.peek()[before..].starts_with(&PREAMBLE);
            if begins {
                self.decoder.skip(before + PREAMBLE.len());
                self.greet();
            }
            self.take_frames();
        }
        Ok(outcome)
    }

    fn take_frames(&mut self) {
        if self.session.is_none() && !self.greeting {
            self.search();
            if !self.greeting {
                return;
            }
        }
        loop {
            if self.decoder.take_preamble() {
                self.greet();
            }
            let taken = match self.decoder.next_frame() {
                Ok(Some(frame)) => self.take_frame(frame),
                Ok(None) if self.interrupted() => continue,
                Ok(None) => return,
                Err(error) => Err(error.to_string()),
            };
            if let Err(reason) = taken {
                // Half a frame and the beginning of a new host's bytes may have made a frame that is none: the preamble
                // is still among the bytes then.
                self.give_up(&reason);
                self.search();
                if !self.greeting {
                    return;
                }
            }
        }
    }

    /// A preamble was read: the session before it is over, and a `Hello` must follow.
    fn greet(&mut self) {
        self.end_session("a new host has connected");
        self.greeting = true;
    }

    /// Looks for a new host behind half a frame of the old one, where reads do not show it; `true` if one was found. Each
    /// read of a long frame searches its beginning again: ports without boundaries are for tests and for slow devices.
    fn interrupted(&mut self) -> bool {
        if self.port.boundaries() == Boundaries::Kept {
            return false;
        }
        let Some(end) = preamble::find_in_frame(self.decoder.peek()) else { return false };
        self.decoder.skip(end);
        self.greet();
        true
    }

    /// Outside a session only a preamble counts: everything before it is dropped, but for what may be its beginning.
    fn search(&mut self) {
        let bytes = self.decoder.peek();
        if let Some(end) = preamble::find_end(bytes) {
            self.decoder.skip(end);
            self.greeting = true;
        } else {
            // The rest of a preamble may come with the next read.
            let keep = bytes.len().min(PREAMBLE.len() - 1);
            self.decoder.skip(bytes.len() - keep);
        }
    }

    fn take_frame(&mut self, frame: Frame) -> Result<(), String> {
        if self.greeting {
            self.greeting = false;
            return self.begin_session(frame);
        }
        match &self.session {
            Some(session) => session.receive(frame).map_err(|violation| violation.to_string()),
            None => Ok(()),
        }
    }

    fn begin_session(&mut self, frame: Frame) -> Result<(), String> {
        if frame.kind != FrameKind::Hello {
            return Err(format!("a session begins with {:?}", frame.kind));
        }
        let hello = Hello::decode(frame.payload).map_err(|error| error.to_string())?;
        let common = (hello.min_version..=hello.max_version).contains(&PROTOCOL_VERSION);
        let newest = self.agent.epoch().newest();
        let admitted = self.agent.epoch().admits(hello.epoch);
        let facts = self.agent.platform.facts();
        let reply = HelloReply {
            version: if common { PROTOCOL_VERSION } else { 0 },
            features: features::OWNERS,
            nonce: hello.nonce,
            // A newer epoch than the host's is the refusal: the host means a machine that this one was forked from.
            epoch: hello.epoch.max(newest),
            agent_version: env!("CARGO_PKG_VERSION").to_owned(),
            kernel_release: facts.kernel_release.clone(),
            boot_ms: facts.boot_ms,
            path_style: facts.path_style.into(),
            firmware: facts.firmware.into(),
        };
        self.output.clear();
        self.written = 0;
        // Written past the session: the reply comes before any frame of it, and also when there is none.
        self.output.extend_from_slice(&PREAMBLE);
        Frame::new(FrameKind::HelloReply, 0, reply.encode_to_vec().into()).encode_into(&mut self.output);
        if !admitted {
            say(&format!("a host of epoch {} is refused: this is epoch {newest}", hello.epoch));
        }
        if !common || !admitted {
            return Ok(());
        }
        let session = Mux::with_features(Role::Agent, hello.features);
        let (agent, accepting, epoch) = (Arc::clone(&self.agent), session.clone(), hello.epoch);
        self.tasks.spawn(async move {
            let mut operations = JoinSet::new();
            while let Some((stream, request)) = accepting.accept().await {
                operations.spawn(super::operations::run(Arc::clone(&agent), epoch, stream, request));
                while operations.try_join_next().is_some() {}
            }
        });
        self.session = Some(session);
        // The kernel may report late: a hang-up from now on may be the one before this host.
        self.alone_since = None;
        Ok(())
    }

    /// Ends the session over bytes that are no frames, and waits for a host that begins anew.
    fn give_up(&mut self, reason: &str) {
        say(&format!("the session is ended: the host sent no valid frame: {reason}"));
        self.end_session(reason);
    }

    fn end_session(&mut self, reason: &str) {
        self.greeting = false;
        if let Some(session) = self.session.take() {
            session.close(reason);
        }
        self.output.clear();
        self.written = 0;
    }

    /// Writes as much as the device takes of one batch; `true` if there is more to write and room for it.
    fn write(&mut self) -> std::io::Result<bool> {
        if self.written == self.output.len() && !self.refill() {
            return Ok(false);
        }
        loop {
            let Some(count) = self.port.write(&self.output[self.written..])? else {
                self.port.want_room(true)?;
                return Ok(false);
            };
            self.written += count;
            if self.written == self.output.len() {
                let more = self.refill();
                if !more {
                    self.port.want_room(false)?;
                }
                return Ok(more);
            }
        }
    }

    /// Takes the next batch; `false` if there is nothing to send.
    fn refill(&mut self) -> bool {
        self.output.clear();
        self.written = 0;
        let Some(session) = &self.session else { return false };
        // The last frame may come on top of the batch, with its header.
        session.take_output(&mut self.frames, WRITE_BATCH - HEADER_LENGTH);
        for frame in self.frames.drain(..) {
            frame.encode_into(&mut self.output);
        }
        !self.output.is_empty()
    }
}
