//! Commands in a fake guest: their output as events, their input.

use std::sync::Arc;

use async_trait::async_trait;
use futures::stream;
use microvm_ports::GuestError;
use microvm_ports::guest::{
    CloseReason, GuestExec, ProcessEvent, ProcessEvents, ProcessHandle, ProcessInput, ProcessWriter,
};
use microvm_types::exec::{ExecRequest, OutputOffsets, ProcessInfo};
use microvm_types::{ErrorKind, ProcessId};
use tokio::sync::watch;

use crate::guest::process::{Next, Process, Side};
use crate::guest::system::wait_closed;
use crate::guest::tree::refused;
use crate::hypervisor::guest::FakeGuest;
use crate::script::Operation;

impl FakeGuest {
    fn handle(&self, process: &Arc<Process>, from: OutputOffsets) -> ProcessHandle {
        let (reader, stdout_offset, stderr_offset) = process.take_over(from.stdout, from.stderr);
        ProcessHandle {
            id: process.id.clone(),
            pid: process.pid,
            stdout_offset,
            stderr_offset,
            events: events(
                Arc::clone(process),
                self.channel.subscribe(),
                Reader::Takes(reader),
                stdout_offset,
                stderr_offset,
            ),
            input: Arc::new(Writer { process: Arc::clone(process), closed: self.channel.subscribe() }),
        }
    }
}

/// Reader of the output.
#[derive(Debug, Clone, Copy)]
enum Reader {
    /// The one with this number, as long as there is no later one.
    Takes(u64),
    /// One of any number beside that.
    Looks { follow: bool },
}

fn events(
    process: Arc<Process>,
    closed: watch::Receiver<Option<CloseReason>>,
    reader: Reader,
    stdout: u64,
    stderr: u64,
) -> ProcessEvents {
    let start = Some((process, closed, stdout, stderr));
    Box::pin(stream::unfold(start, move |state| async move {
        let (process, mut closed, mut stdout, mut stderr) = state?;
        let next = tokio::select! {
            biased;
            next = async {
                match reader {
                    Reader::Takes(number) => process.next(number, stdout, stderr).await,
                    Reader::Looks { follow } => process.seen(stdout, stderr, follow).await,
                }
            } => next,
            reason = wait_closed(&mut closed) => {
                return Some((ProcessEvent::Lost(GuestError::Closed(reason)), None));
            }
        };
        match next {
            Next::Data(side, offset, data) => {
                let end = offset + data.len() as u64;
                let event = match side {
                    Side::Stdout => {
                        stdout = end;
                        ProcessEvent::Stdout(data)
                    }
                    Side::Stderr => {
                        stderr = end;
                        ProcessEvent::Stderr(data)
                    }
                };
                Some((event, Some((process, closed, stdout, stderr))))
            }
            Next::Exited(exit) => Some((ProcessEvent::Exited(exit), None)),
            Next::Superseded => None,
            Next::UpToDate => Some((ProcessEvent::UpToDate, None)),
        }
    }))
}

struct Writer {
    process: Arc<Process>,
    closed: watch::Receiver<Option<CloseReason>>,
}

#[async_trait]
impl ProcessWriter for Writer {
    async fn send(&self, input: ProcessInput) -> Result<(), GuestError> {
        let mut closed = self.closed.clone();
        let present = closed.borrow().clone();
        if let Some(reason) = present {
            return Err(GuestError::Closed(reason));
        }
        match input {
            ProcessInput::Stdin(data) => tokio::select! {
                () = self.process.feed(data) => {}
                reason = wait_closed(&mut closed) => return Err(GuestError::Closed(reason)),
            },
            ProcessInput::CloseStdin => self.process.close_input(),
            ProcessInput::Resize(size) => self.process.resize(size),
            ProcessInput::Signal(signal) => self.process.signal(check_signal(signal)?),
        }
        Ok(())
    }
}

fn check_signal(signal: u8) -> Result<u8, GuestError> {
    if (1..=64).contains(&signal) {
        Ok(signal)
    } else {
        Err(refused(ErrorKind::Invalid, format!("{signal} is not a signal")))
    }
}

#[async_trait]
impl GuestExec for FakeGuest {
    async fn exec(&self, request: &ExecRequest) -> Result<ProcessHandle, GuestError> {
        let verdict = self.ask(Operation::Exec).await?;
        let process = self.system().await?.start(request)?;
        verdict.finish().await;
        Ok(self.handle(&process, OutputOffsets { stdout: Some(0), stderr: Some(0) }))
    }

    async fn attach(&self, process: &ProcessId, from: OutputOffsets) -> Result<ProcessHandle, GuestError> {
        let process = self.system().await?.process(process)?;
        Ok(self.handle(&process, from))
    }

    async fn read_output(
        &self,
        process: &ProcessId,
        from: OutputOffsets,
        follow: bool,
    ) -> Result<ProcessHandle, GuestError> {
        let process = self.system().await?.process(process)?;
        let (stdout_offset, stderr_offset) = process.look(from.stdout, from.stderr);
        let (closed, reader) = (self.channel.subscribe(), Reader::Looks { follow });
        Ok(ProcessHandle {
            id: process.id.clone(),
            pid: process.pid,
            stdout_offset,
            stderr_offset,
            events: events(Arc::clone(&process), closed, reader, stdout_offset, stderr_offset),
            input: Arc::new(Writer { process, closed: self.channel.subscribe() }),
        })
    }

    async fn processes(&self) -> Result<Vec<ProcessInfo>, GuestError> {
        let verdict = self.ask(Operation::Processes).await?;
        let processes = self.system().await?.processes();
        verdict.finish().await;
        let listed =
            processes.iter().filter(|process| !(process.request.unlisted && process.exit().is_some()));
        Ok(listed.map(|process| process.info()).collect())
    }

    async fn signal(&self, process: &ProcessId, signal: u8) -> Result<(), GuestError> {
        let signal = check_signal(signal)?;
        self.system().await?.process(process)?.signal(signal);
        Ok(())
    }
}
