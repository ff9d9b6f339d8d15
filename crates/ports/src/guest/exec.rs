//! Processes that the agent starts.

use std::pin::Pin;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures::Stream;
use microvm_types::ProcessId;
use microvm_types::exec::{ExecRequest, ExitStatus, OutputOffsets, ProcessInfo, TerminalSize};

use super::GuestError;

/// Events of one process in order; see [`ProcessEvent`].
pub type ProcessEvents = Pin<Box<dyn Stream<Item = ProcessEvent> + Send>>;

/// Event of a process in the guest.
#[derive(Debug, Clone)]
pub enum ProcessEvent {
    /// Bytes of standard output, or of the terminal.
    Stdout(Bytes),
    /// Bytes of standard error.
    Stderr(Bytes),
    /// It ended; all of its output came before. Nothing comes after.
    Exited(ExitStatus),
    /// All that was asked for has come, and the process lives on: the end of a [`GuestExec::read_output`] that does not
    /// follow. Nothing comes after.
    UpToDate,
    /// The channel was lost; the process may live on and can be attached to again. Nothing comes after.
    Lost(GuestError),
}

/// Input of a process.
#[derive(Debug, Clone)]
pub enum ProcessInput {
    /// Bytes for its standard input, or typed at its terminal.
    Stdin(Bytes),
    /// No more standard input.
    CloseStdin,
    /// Its terminal has a new size.
    Resize(TerminalSize),
    /// A signal for its process group (1 to 64).
    Signal(u8),
}

/// A started process with its streams. Dropping it detaches; the process lives on, held up when its output buffer is
/// full unless it was started detached.
pub struct ProcessHandle {
    /// Our id for it.
    pub id: ProcessId,
    /// Its number in the guest.
    pub pid: u32,
    /// Offset of the first byte of standard output that will come.
    pub stdout_offset: u64,
    /// Offset of the first byte of standard error that will come.
    pub stderr_offset: u64,
    /// Its events.
    pub events: ProcessEvents,
    /// Its input.
    pub input: Arc<dyn ProcessWriter>,
}

impl std::fmt::Debug for ProcessHandle {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("ProcessHandle")
            .field("id", &self.id)
            .field("pid", &self.pid)
            .finish_non_exhaustive()
    }
}

/// The sending side of a process.
#[async_trait]
pub trait ProcessWriter: Send + Sync {
    /// Sends one input, in order; waits while the process does not read. Input for a process that has ended is dropped.
    async fn send(&self, input: ProcessInput) -> Result<(), GuestError>;
}

/// Starts processes in a guest and follows them.
#[async_trait]
pub trait GuestExec: Send + Sync {
    /// Starts a process. "Could not be started" (no such program, user, directory) is [`GuestError::Refused`]; a
    /// process that ran and failed is an [`ExitStatus`].
    async fn exec(&self, request: &ExecRequest) -> Result<ProcessHandle, GuestError>;

    /// Takes the output of a process up again from an offset. A reader that was attached before is detached.
    async fn attach(&self, process: &ProcessId, from: OutputOffsets) -> Result<ProcessHandle, GuestError>;

    /// Looks at the output that is kept of a process, beside whoever takes it: neither is disturbed, and the process is not
    /// held up. With `follow` it lasts until the process ends, else it ends with the present output. Input is ignored.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`](microvm_types::ErrorKind::Unsupported) from an agent that is older than this request. If the process writes faster than the
    /// output is taken the events end with [`ProcessEvent::Lost`] and how much was missed.
    async fn read_output(
        &self,
        process: &ProcessId,
        from: OutputOffsets,
        follow: bool,
    ) -> Result<ProcessHandle, GuestError>;

    /// Processes started through the agent that are still known.
    async fn processes(&self) -> Result<Vec<ProcessInfo>, GuestError>;

    /// Sends a signal (1 to 64) to a process group started through the agent.
    async fn signal(&self, process: &ProcessId, signal: u8) -> Result<(), GuestError>;
}
