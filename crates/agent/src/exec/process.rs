//! One started command.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use microvm_protocol::messages::{self, Exec, Exited, FailureKind, Terminal};
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;

use super::control_group::ControlGroup;
use super::output::Output;
use super::stdio;
use crate::failure::{AgentError, AgentResult};
use std::os::fd::OwnedFd;

/// Most bytes of a command line in the description that is sent to the host.
const MOST_COMMAND: usize = 1000;
/// Most words of it.
const MOST_WORDS: usize = 100;

/// What changes about a process.
#[derive(Debug, Default)]
pub(crate) struct ProcessState {
    /// Standard output (or the terminal) and standard error.
    pub(crate) outputs: [Output; 2],
    pub(crate) exit: Option<Exited>,
    /// When it ended.
    pub(crate) ended: Option<Instant>,
    pub(crate) timed_out: bool,
    /// Number of the reader that may take output; every attach is a new one.
    pub(crate) reader: u64,
    pub(crate) has_reader: bool,
}

impl ProcessState {
    /// Whether it has ended and all it wrote is in the buffers.
    pub(crate) fn is_complete(&self) -> bool {
        self.exit.is_some() && self.outputs.iter().all(|output| output.finished)
    }
}

/// One started command with its streams.
pub(crate) struct Process {
    pub(crate) id: String,
    pub(crate) pid: u32,
    pub(crate) command: Vec<String>,
    pub(crate) started: Instant,
    pub(crate) detached: bool,
    /// Forgotten when it has ended.
    pub(crate) unlisted: bool,
    pub(crate) is_terminal: bool,
    /// Where input goes; empty after its end.
    pub(crate) stdin: tokio::sync::Mutex<Option<AsyncFd<OwnedFd>>>,
    /// The terminal's main side, for its size.
    pub(crate) terminal: Option<OwnedFd>,
    pub(crate) group: Mutex<Option<ControlGroup>>,
    state: Mutex<ProcessState>,
    /// Fires at every change of the state.
    pub(crate) changed: watch::Sender<()>,
}

impl Process {
    pub(crate) fn new(
        request: Exec,
        pid: u32,
        stdin: Option<AsyncFd<OwnedFd>>,
        terminal: Option<OwnedFd>,
        group: Option<ControlGroup>,
    ) -> Self {
        let mut state = ProcessState::default();
        let is_terminal = terminal.is_some();
        state.outputs[1].finished = is_terminal;
        Self {
            id: request.id,
            pid,
            command: request.command,
            started: Instant::now(),
            detached: request.detach,
            unlisted: request.unlisted,
            is_terminal,
            stdin: tokio::sync::Mutex::new(stdin),
            terminal,
            group: Mutex::new(group),
            state: Mutex::new(state),
            changed: watch::Sender::new(()),
        }
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, ProcessState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn notify(&self) {
        self.changed.send_replace(());
    }

    /// Sends a signal to its process group.
    pub(crate) fn signal(&self, number: u32) -> AgentResult<()> {
        if self.lock().exit.is_some() {
            return Err(AgentError::new(
                FailureKind::Conflict,
                format!("process {} has ended already", self.id),
            ));
        }
        let raw = i32::try_from(number).ok().filter(|number| (1..=64).contains(number));
        let raw =
            raw.ok_or_else(|| AgentError::invalid(format!("{number} is not a signal: signals are 1 to 64")))?;
        send_signal(self.pid, raw)
            .map_err(|error| AgentError::system(format!("signal process {}", self.pid), error))
    }

    /// Gives its terminal a new size.
    pub(crate) fn resize(&self, size: Terminal) -> AgentResult<()> {
        let terminal =
            self.terminal.as_ref().ok_or_else(|| AgentError::invalid("the process has no terminal"))?;
        stdio::resize(terminal, size).map_err(|error| AgentError::system("resize the terminal", error))
    }

    /// Kills it and everything it has started.
    pub(crate) fn kill_all(&self) {
        let group = self.group.lock().unwrap_or_else(PoisonError::into_inner);
        if group.as_ref().is_some_and(ControlGroup::kill) {
            return;
        }
        drop(group);
        // Without control groups: its group, and whoever else is in the session it leads.
        let _ = send_signal(self.pid, libc::SIGKILL);
        // Without /proc only the group is known.
        for process in crate::system::processes::all().unwrap_or_default() {
            if process.session == self.pid
                && let Some(pid) = Pid::from_raw(process.message.pid.cast_signed())
            {
                let _ = rustix::process::kill_process(pid, Signal::KILL);
            }
        }
    }

    /// What the host is told of it.
    pub(crate) fn describe(&self) -> messages::Process {
        let state = self.lock();
        let mut room = MOST_COMMAND;
        let mut command: Vec<String> = Vec::new();
        for word in &self.command {
            if room == 0 || command.len() == MOST_WORDS {
                break;
            }
            command.push(word[..word.floor_char_boundary(room)].to_owned());
            room = room.saturating_sub(word.len());
        }
        let bytes = |words: &[String]| words.iter().map(String::len).sum::<usize>() as u64;
        messages::Process {
            id: self.id.clone(),
            pid: self.pid,
            command_omitted: bytes(&self.command) - bytes(&command),
            command,
            age_ms: u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX),
            exit: state.exit,
            stdout_bytes: state.outputs[0].end(),
            stderr_bytes: state.outputs[1].end(),
            detached: self.detached,
        }
    }
}

/// Signals a whole process group, real-time signals included.
#[allow(unsafe_code)]
fn send_signal(group: u32, number: i32) -> std::io::Result<()> {
    if let (Some(signal), Some(pid)) = (Signal::from_named_raw(number), Pid::from_raw(group.cast_signed())) {
        return Ok(kill_process_group(pid, signal)?);
    }
    // SAFETY: `kill` takes two numbers and touches no memory; the safe wrapper knows no real-time signals.
    if unsafe { libc::kill(-group.cast_signed(), number) } == 0 {
        Ok(())
    } else {
        Err(std::io::Error::last_os_error())
    }
}
