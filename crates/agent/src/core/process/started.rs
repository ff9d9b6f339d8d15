//! One started command.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use microvm_protocol::messages::{self, Exec, Exited, FailureKind, Terminal};
use tokio::sync::watch;

use super::output::OutputBuffer;
use crate::core::failure::{AgentError, AgentResult};
use crate::core::platform::{Child as _, Programs};

/// Most bytes of a command line in the description that is sent to the host.
const MOST_COMMAND: usize = 1000;
/// Most words of it.
const MOST_WORDS: usize = 100;

/// State of a process that changes.
#[derive(Debug, Default)]
pub(in crate::core) struct ProcessState {
    /// Standard output (or the terminal) and standard error.
    pub(in crate::core) outputs: [OutputBuffer; 2],
    pub(in crate::core) exit: Option<Exited>,
    /// Time of its end.
    pub(in crate::core) ended: Option<Instant>,
    pub(in crate::core) timed_out: bool,
    /// Number of the reader that may take output; each attach gets the next one.
    pub(in crate::core) reader: u64,
    pub(in crate::core) has_reader: bool,
}

impl ProcessState {
    /// Returns true if it has ended and all its output is in the buffers.
    pub(in crate::core) fn is_complete(&self) -> bool {
        self.exit.is_some() && self.outputs.iter().all(|output| output.finished)
    }
}

/// One started command with its streams.
pub(in crate::core) struct Process<P: Programs> {
    pub(in crate::core) id: String,
    pub(in crate::core) pid: u32,
    pub(in crate::core) command: Vec<String>,
    pub(in crate::core) started: Instant,
    pub(in crate::core) detached: bool,
    terminal: bool,
    /// It was started with a standard input that can be written.
    has_stdin: bool,
    /// Removed from the table when it has ended.
    pub(in crate::core) unlisted: bool,
    /// Its standard input; empty after the end of input.
    pub(in crate::core) stdin: tokio::sync::Mutex<Option<P::Input>>,
    child: P::Child,
    state: Mutex<ProcessState>,
    /// Fires at every change of the state.
    pub(in crate::core) changed: watch::Sender<()>,
}

impl<P: Programs> Process<P> {
    pub(in crate::core) fn new(request: Exec, pid: u32, child: P::Child, stdin: Option<P::Input>) -> Self {
        let mut state = ProcessState::default();
        // A terminal has one output: the second one is complete from the beginning.
        state.outputs[1].finished = request.terminal.is_some();
        Self {
            id: request.id,
            pid,
            command: request.command,
            started: Instant::now(),
            detached: request.detach,
            terminal: request.terminal.is_some(),
            has_stdin: stdin.is_some(),
            unlisted: request.unlisted,
            stdin: tokio::sync::Mutex::new(stdin),
            child,
            state: Mutex::new(state),
            changed: watch::Sender::new(()),
        }
    }

    pub(in crate::core) fn lock(&self) -> MutexGuard<'_, ProcessState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(in crate::core) fn notify(&self) {
        self.changed.send_replace(());
    }

    /// Sends it a signal.
    pub(in crate::core) fn signal(&self, number: u32) -> AgentResult<()> {
        if self.lock().exit.is_some() {
            return Err(AgentError::new(
                FailureKind::Conflict,
                format!("process {} has ended already", self.id),
            ));
        }
        self.child.signal(number)
    }

    /// Changes the size of its terminal.
    pub(in crate::core) fn resize(&self, size: Terminal) -> AgentResult<()> {
        self.child.resize(size)
    }

    /// Kills it and everything it has started.
    pub(in crate::core) fn kill_all(&self) {
        self.child.kill_all();
    }

    /// Gives back what it occupied in the system; see [`crate::core::platform::Child::release`].
    pub(in crate::core) fn release(&self) {
        self.child.release();
    }

    /// Description for the host.
    pub(in crate::core) fn describe(&self) -> messages::Process {
        let state = self.lock();
        let (command, command_omitted) = shown_command(&self.command);
        messages::Process {
            id: self.id.clone(),
            pid: self.pid,
            command_omitted,
            command,
            age_ms: u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX),
            exit: state.exit,
            stdout_bytes: state.outputs[0].end(),
            stderr_bytes: state.outputs[1].end(),
            detached: self.detached,
            terminal: self.terminal,
            stdin: self.has_stdin,
        }
    }
}

/// As much of a command line as is sent to the host, and the number of bytes that are left out.
pub(in crate::core) fn shown_command(words: &[String]) -> (Vec<String>, u64) {
    let mut room = MOST_COMMAND;
    let mut shown: Vec<String> = Vec::new();
    for word in words {
        if room == 0 || shown.len() == MOST_WORDS {
            break;
        }
        shown.push(word[..word.floor_char_boundary(room)].to_owned());
        room = room.saturating_sub(word.len());
    }
    let bytes = |words: &[String]| words.iter().map(String::len).sum::<usize>() as u64;
    let omitted = bytes(words) - bytes(&shown);
    (shown, omitted)
}
