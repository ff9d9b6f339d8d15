//! A process of a fake guest: its input, its numbered output, its end.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use microvm_types::ProcessId;
use microvm_types::exec::{ExecRequest, ExitStatus, ProcessInfo, TerminalSize};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::guest::programs::Context;
use crate::guest::shell::Place;

/// Bytes of output kept per stream for those who attach later.
const KEPT: usize = 1 << 20;

/// Most bytes handed to a reader at once.
const CHUNK: usize = 64 << 10;

/// One of the two outputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    Stdout,
    Stderr,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Output {
    bytes: VecDeque<u8>,
    /// Offset of the first byte still kept.
    start: u64,
    /// Offset up to which some reader has taken it.
    taken: u64,
}

impl Output {
    fn end(&self) -> u64 {
        self.start + self.bytes.len() as u64
    }

    /// Takes in as much as there is room for; room is made by forgetting what was read, or anything if `detached`.
    fn accept(&mut self, data: &[u8], detached: bool) -> usize {
        let wanted = data.len().min(KEPT);
        let excess = (self.bytes.len() + wanted).saturating_sub(KEPT);
        let read = usize::try_from(self.taken.saturating_sub(self.start)).unwrap_or(usize::MAX);
        let forget = if detached { excess } else { excess.min(read) };
        self.bytes.drain(..forget);
        self.start += forget as u64;
        let room = wanted.min(KEPT - self.bytes.len());
        self.bytes.extend(&data[..room]);
        room
    }

    fn from(&self, offset: u64) -> Bytes {
        let skip = usize::try_from(offset.saturating_sub(self.start)).unwrap_or(usize::MAX);
        self.bytes.iter().skip(skip).take(CHUNK).copied().collect()
    }
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Inner {
    stdout: Output,
    stderr: Output,
    input: VecDeque<Vec<u8>>,
    input_closed: bool,
    signal: Option<u8>,
    exit: Option<ExitStatus>,
    reader: u64,
    size: Option<TerminalSize>,
    /// Place of its shell in the script, if it is one.
    place: Option<Place>,
}

/// A process as it lies in memory.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct SavedProcess {
    id: ProcessId,
    pid: u32,
    request: ExecRequest,
    context: Context,
    age_ms: u64,
    inner: Inner,
}

/// One process. Everything that happens to it wakes whoever waits on `changed`.
#[derive(Debug)]
pub(crate) struct Process {
    pub(crate) id: ProcessId,
    pub(crate) pid: u32,
    pub(crate) request: ExecRequest,
    pub(crate) context: Context,
    started: Instant,
    inner: Mutex<Inner>,
    changed: watch::Sender<()>,
}

/// Result of a read.
#[derive(Debug)]
pub(crate) enum Next {
    /// Bytes and the offset of the first of them.
    Data(Side, u64, Bytes),
    Exited(ExitStatus),
    /// Another reader has taken over.
    Superseded,
    /// All there was has been seen.
    UpToDate,
}

impl Process {
    pub(crate) fn new(id: ProcessId, pid: u32, request: ExecRequest, context: Context) -> Self {
        let inner = Inner { input_closed: !request.stdin, size: request.terminal, ..Inner::default() };
        Self {
            id,
            pid,
            request,
            context,
            started: Instant::now(),
            inner: Mutex::new(inner),
            changed: watch::Sender::new(()),
        }
    }

    /// It as it is now.
    pub(crate) fn save(&self) -> SavedProcess {
        SavedProcess {
            id: self.id.clone(),
            pid: self.pid,
            request: self.request.clone(),
            context: self.context.clone(),
            age_ms: u64::try_from(self.age().as_millis()).unwrap_or(u64::MAX),
            inner: self.inner().clone(),
        }
    }

    /// It as it was saved. Nobody reads it or has it run yet.
    pub(crate) fn restored(saved: SavedProcess) -> Self {
        let SavedProcess { id, pid, request, context, age_ms, inner } = saved;
        let now = Instant::now();
        let started = now.checked_sub(Duration::from_millis(age_ms)).unwrap_or(now);
        Self { id, pid, request, context, started, inner: Mutex::new(inner), changed: watch::Sender::new(()) }
    }

    pub(crate) fn age(&self) -> Duration {
        self.started.elapsed()
    }

    /// Place of its shell when it was saved.
    pub(crate) fn place(&self) -> Option<Place> {
        self.inner().place.clone()
    }

    /// Its shell has got this far.
    pub(crate) fn note_place(&self, place: Place) {
        self.inner().place = Some(place);
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change<T>(&self, change: impl FnOnce(&mut Inner) -> T) -> T {
        let value = change(&mut self.inner());
        self.changed.send_replace(());
        value
    }

    /// Waits until `ready` gives a value.
    async fn until<T>(&self, mut ready: impl FnMut(&mut Inner) -> Option<T>) -> T {
        let mut changes = self.changed.subscribe();
        loop {
            if let Some(value) = ready(&mut self.inner()) {
                return value;
            }
            // The sender lives as long as `self`, so this only ends by a change.
            let _ = changes.changed().await;
        }
    }

    /// Writes all of `data`, waiting while nobody reads.
    pub(crate) async fn write(&self, side: Side, mut data: &[u8]) {
        // A terminal has one output for both.
        let side = if self.request.terminal.is_some() { Side::Stdout } else { side };
        while !data.is_empty() {
            let detached = self.request.detach;
            let accepted = self
                .until(|inner| {
                    let accepted = inner.output(side).accept(data, detached);
                    (accepted > 0).then_some(accepted)
                })
                .await;
            self.changed.send_replace(());
            data = &data[accepted..];
            // A program such as `yes` never waits for anything else, and would hold its thread.
            tokio::task::yield_now().await;
        }
    }

    /// The next piece of standard input; `None` at its end.
    pub(crate) async fn read(&self) -> Option<Bytes> {
        let piece = self
            .until(|inner| match inner.input.pop_front() {
                Some(piece) => Some(Some(Bytes::from(piece))),
                None if inner.input_closed => Some(None),
                None => None,
            })
            .await;
        self.changed.send_replace(());
        piece
    }

    /// Gives it input; waits while it does not read.
    pub(crate) async fn feed(&self, data: Bytes) {
        self.until(|inner| {
            let open = inner.exit.is_none() && !inner.input_closed;
            let waiting: usize = inner.input.iter().map(Vec::len).sum();
            if open && waiting >= KEPT {
                return None;
            }
            if open && !data.is_empty() {
                inner.input.push_back(data.to_vec());
            }
            Some(())
        })
        .await;
        self.changed.send_replace(());
    }

    pub(crate) fn close_input(&self) {
        self.change(|inner| inner.input_closed = true);
    }

    pub(crate) fn resize(&self, size: TerminalSize) {
        self.change(|inner| inner.size = inner.size.map(|_| size));
    }

    pub(crate) fn size(&self) -> Option<TerminalSize> {
        self.inner().size
    }

    /// Sends a signal. Those that a program ignores by default (CHLD, CONT, URG, WINCH) do nothing here either.
    pub(crate) fn signal(&self, signal: u8) {
        if !matches!(signal, 17 | 18 | 23 | 28) {
            self.change(|inner| inner.signal = inner.signal.or(Some(signal)));
        }
    }

    /// Returns when a signal has come that ends it.
    pub(crate) async fn signalled(&self) -> u8 {
        self.until(|inner| inner.signal).await
    }

    pub(crate) fn end(&self, exit: ExitStatus) {
        self.change(|inner| {
            inner.exit.get_or_insert(exit);
            inner.input.clear();
        });
    }

    pub(crate) fn exit(&self) -> Option<ExitStatus> {
        self.inner().exit
    }

    pub(crate) fn info(&self) -> ProcessInfo {
        let inner = self.inner();
        ProcessInfo {
            command_omitted: 0,
            id: self.id.clone(),
            pid: self.pid,
            command: self.request.command.clone(),
            age_ms: u64::try_from(self.age().as_millis()).unwrap_or(u64::MAX),
            exit: inner.exit,
            stdout_bytes: inner.stdout.end(),
            stderr_bytes: inner.stderr.end(),
            detached: self.request.detach,
            terminal: self.request.terminal.is_some(),
            stdin: self.request.stdin,
        }
    }

    /// Makes a new reader the only one; returns its number and where each output really starts for it.
    pub(crate) fn take_over(&self, stdout: Option<u64>, stderr: Option<u64>) -> (u64, u64, u64) {
        self.change(|inner| {
            inner.reader += 1;
            let begin = |output: &Output, asked: Option<u64>| {
                asked.unwrap_or(output.start).clamp(output.start, output.end())
            };
            (inner.reader, begin(&inner.stdout, stdout), begin(&inner.stderr, stderr))
        })
    }

    /// First offset of each output for somebody who only looks.
    pub(crate) fn look(&self, stdout: Option<u64>, stderr: Option<u64>) -> (u64, u64) {
        let inner = self.inner();
        let begin = |output: &Output, asked: Option<u64>| {
            asked.unwrap_or(output.start).clamp(output.start, output.end())
        };
        (begin(&inner.stdout, stdout), begin(&inner.stderr, stderr))
    }

    /// Output after these offsets for somebody who only looks; with `follow` waits for more.
    pub(crate) async fn seen(&self, stdout: u64, stderr: u64, follow: bool) -> Next {
        self.until(|inner| {
            for (side, offset) in [(Side::Stdout, stdout), (Side::Stderr, stderr)] {
                let output = inner.output(side);
                let data = output.from(offset);
                if !data.is_empty() {
                    return Some(Next::Data(side, offset.max(output.start), data));
                }
            }
            inner.exit.map(Next::Exited).or((!follow).then_some(Next::UpToDate))
        })
        .await
    }

    /// Waits for what comes next for a reader that has got this far.
    pub(crate) async fn next(&self, reader: u64, stdout: u64, stderr: u64) -> Next {
        let next = self
            .until(|inner| {
                if inner.reader != reader {
                    return Some(Next::Superseded);
                }
                for (side, offset) in [(Side::Stdout, stdout), (Side::Stderr, stderr)] {
                    let output = inner.output(side);
                    let data = output.from(offset);
                    if !data.is_empty() {
                        let offset = offset.max(output.start);
                        output.taken = output.taken.max(offset + data.len() as u64);
                        return Some(Next::Data(side, offset, data));
                    }
                }
                inner.exit.map(Next::Exited)
            })
            .await;
        self.changed.send_replace(());
        next
    }
}

impl Inner {
    const fn output(&mut self, side: Side) -> &mut Output {
        match side {
            Side::Stdout => &mut self.stdout,
            Side::Stderr => &mut self.stderr,
        }
    }
}

impl Process {
    /// Waits for its end.
    pub(crate) async fn ended(&self) -> ExitStatus {
        self.until(|inner| inner.exit).await
    }
}
