//! A started program: signals, terminal, control group.

use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use microvm_protocol::messages::Terminal;
use rustix::process::{Pid, Signal, kill_process, kill_process_group};

use super::control_group::{ControlGroup, ControlGroups};
use super::stdio;
use crate::core::failure::{AgentError, AgentResult};
use crate::core::platform::Child;
use crate::platform::linux::system::processes;

/// A program that leads a session of its own.
pub(crate) struct LinuxChild {
    pub(super) pid: u32,
    /// The terminal's main side, for its size.
    pub(super) terminal: Option<OwnedFd>,
    pub(super) group: Mutex<Option<ControlGroup>>,
    pub(super) groups: Arc<ControlGroups>,
}

impl LinuxChild {
    fn group(&self) -> MutexGuard<'_, Option<ControlGroup>> {
        self.group.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Child for LinuxChild {
    /// Signals its process group.
    fn signal(&self, number: u32) -> AgentResult<()> {
        let raw = i32::try_from(number).ok().filter(|number| (1..=64).contains(number));
        let raw =
            raw.ok_or_else(|| AgentError::invalid(format!("{number} is not a signal: signals are 1 to 64")))?;
        send_signal(self.pid, raw)
            .map_err(|error| AgentError::system(format!("signal process {}", self.pid), error))
    }

    fn resize(&self, size: Terminal) -> AgentResult<()> {
        let terminal =
            self.terminal.as_ref().ok_or_else(|| AgentError::invalid("the process has no terminal"))?;
        stdio::resize(terminal, size).map_err(|error| AgentError::system("resize the terminal", error))
    }

    fn kill_all(&self) {
        let group = self.group();
        if group.as_ref().is_some_and(ControlGroup::kill) {
            return;
        }
        drop(group);
        // Without control groups: its process group, and all others in the session that it leads.
        let _ = send_signal(self.pid, libc::SIGKILL);
        // Without /proc only the process group is known.
        for process in processes::all().unwrap_or_default() {
            if process.session == self.pid
                && let Some(pid) = Pid::from_raw(process.message.pid.cast_signed())
            {
                let _ = kill_process(pid, Signal::KILL);
            }
        }
    }

    /// Gives the control group back: an empty one serves the next command. One in which a process lives on is removed
    /// from the agent's sight, so that it can no longer be killed as a group.
    fn release(&self) {
        if let Some(group) = self.group().take() {
            self.groups.give_back(group);
        }
    }
}

/// Signals a whole process group, real-time signals included.
#[allow(unsafe_code)]
fn send_signal(group: u32, number: i32) -> std::io::Result<()> {
    if let (Some(signal), Some(pid)) = (Signal::from_named_raw(number), Pid::from_raw(group.cast_signed())) {
        return Ok(kill_process_group(pid, signal)?);
    }
    // SAFETY: `kill` takes two numbers and touches no memory. Needed because the safe wrapper knows no real-time signals.
    if unsafe { libc::kill(-group.cast_signed(), number) } == 0 {
        Ok(())
    } else {
        Err(std::io::Error::last_os_error())
    }
}
