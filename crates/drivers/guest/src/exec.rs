//! Processes.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use microvm_ports::GuestError;
use microvm_ports::guest::{ProcessEvent, ProcessEvents, ProcessHandle, ProcessInput, ProcessWriter};
use microvm_protocol::messages::{self, Exited, Operation, Reply, Resize, Signal, Terminal, Variable};
use microvm_protocol::mux::{Incoming, StreamHandle};
use microvm_types::exec::{ExecRequest, ExitStatus, OutputOffsets, ProcessInfo, TerminalSize};
use microvm_types::{ErrorKind, ProcessId};
use tokio::sync::watch;

use crate::channel::Channel;
use crate::list::Reading;
use crate::sanitize::clean;

/// Most processes a guest is believed to have started for us.
const MOST_PROCESSES: usize = 10_000;

pub(crate) async fn exec(channel: &Arc<Channel>, request: &ExecRequest) -> Result<ProcessHandle, GuestError> {
    let id = new_id()?;
    let operation = Operation::Exec(messages::Exec {
        id: id.as_str().to_owned(),
        command: request.command.clone(),
        environment: request
            .environment
            .iter()
            .map(|(name, value)| Variable { name: name.clone(), value: value.clone() })
            .collect(),
        working_directory: request.working_directory.clone().unwrap_or_default(),
        user: request.user.clone().unwrap_or_default(),
        terminal: request.terminal.map(terminal),
        stdin: request.stdin,
        timeout_ms: request.timeout_ms.unwrap_or(0),
        detach: request.detach,
        unlisted: request.unlisted,
    });
    let stream = channel.open(operation)?;
    if !request.stdin && request.terminal.is_none() {
        stream.end();
    }
    started(channel, id, stream, End::WithTheProcess).await
}

/// Earliest moment at which the stream of a process may end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// Only after the process has.
    WithTheProcess,
    /// Also when all that was asked for has been sent.
    MayComeEarly,
}

pub(crate) async fn attach(
    channel: &Arc<Channel>,
    id: &ProcessId,
    from: OutputOffsets,
) -> Result<ProcessHandle, GuestError> {
    let request = messages::Attach { id: id.as_str().to_owned(), stdout: from.stdout, stderr: from.stderr };
    let stream = channel.open(Operation::Attach(request))?;
    started(channel, id.clone(), stream, End::WithTheProcess).await
}

/// Looks at a process's output beside whoever takes it.
pub(crate) async fn read_output(
    channel: &Arc<Channel>,
    id: &ProcessId,
    from: OutputOffsets,
    follow: bool,
) -> Result<ProcessHandle, GuestError> {
    let (id_text, OutputOffsets { stdout, stderr }) = (id.as_str().to_owned(), from);
    let request = messages::ReadOutput { id: id_text, stdout, stderr, follow };
    let stream = channel.open(Operation::ReadOutput(request))?;
    stream.end();
    started(channel, id.clone(), stream, End::MayComeEarly).await
}

pub(crate) async fn processes(channel: &Channel) -> Result<Vec<ProcessInfo>, GuestError> {
    let reading = Reading {
        most: MOST_PROCESSES,
        open: |reply| if let Reply::Processes(some) = reply { Some(some.processes) } else { None },
        // An id that is none cannot be used for anything.
        keep: describe,
        behind: |process: &ProcessInfo| {
            process.command.iter().map(|word| size_of::<String>() + word.capacity()).sum::<usize>()
        },
    };
    channel.list(Operation::Processes(messages::Empty {}), reading).await
}

pub(crate) async fn signal(channel: &Channel, id: &ProcessId, signal: u8) -> Result<(), GuestError> {
    channel.command(Operation::Signal(Signal { id: id.as_str().to_owned(), signal: signal.into() })).await
}

async fn started(
    channel: &Arc<Channel>,
    id: ProcessId,
    stream: StreamHandle,
    end: End,
) -> Result<ProcessHandle, GuestError> {
    let Reply::Started(started) = channel.reply(&stream).await? else {
        return Err(channel.broken("the guest does not say that the process has started"));
    };
    let stream = Arc::new(stream);
    let (listening, gone) = watch::channel(());
    Ok(ProcessHandle {
        id: id.clone(),
        pid: started.pid,
        stdout_offset: started.stdout_offset,
        stderr_offset: started.stderr_offset,
        events: events(Arc::clone(channel), Arc::clone(&stream), listening, end),
        // Dropping the events is what detaches; a writer that is kept longer must not hold the stream.
        input: Arc::new(Writer {
            channel: Arc::clone(channel),
            stream: tokio::sync::Mutex::new(Arc::downgrade(&stream)),
            gone,
            id,
        }),
    })
}

fn events(
    channel: Arc<Channel>,
    stream: Arc<StreamHandle>,
    listening: watch::Sender<()>,
    end: End,
) -> ProcessEvents {
    // The last part only says by its end that nobody listens any more.
    let state = Some((channel, (stream, listening)));
    Box::pin(futures::stream::unfold(state, move |state| async move {
        let (channel, stream) = state?;
        loop {
            let lost = match stream.0.receive().await {
                Ok(Some(Incoming::Data(bytes))) => {
                    return Some((ProcessEvent::Stdout(bytes), Some((channel, stream))));
                }
                Ok(Some(Incoming::DataErr(bytes))) => {
                    return Some((ProcessEvent::Stderr(bytes), Some((channel, stream))));
                }
                Ok(Some(Incoming::Message(Some(Reply::Exited(exited))))) => {
                    return Some((ProcessEvent::Exited(status(exited)), None));
                }
                // Of a newer version.
                Ok(Some(Incoming::Message(None))) => continue,
                Ok(None) if end == End::MayComeEarly => return Some((ProcessEvent::UpToDate, None)),
                Ok(_) => channel.broken("the guest ends a process without saying how it ended"),
                Err(error) => channel.stream_failed(error),
            };
            return Some((ProcessEvent::Lost(lost), None));
        }
    }))
}

struct Writer {
    channel: Arc<Channel>,
    stream: tokio::sync::Mutex<std::sync::Weak<StreamHandle>>,
    /// Closed when the events are dropped or have ended.
    gone: watch::Receiver<()>,
    id: ProcessId,
}

#[async_trait]
impl ProcessWriter for Writer {
    async fn send(&self, input: ProcessInput) -> Result<(), GuestError> {
        let result = match input {
            ProcessInput::Stdin(bytes) => {
                // Held while sending, so that two callers' inputs do not mix.
                let stream = self.stream.lock().await;
                let Some(stream) = stream.upgrade() else { return Ok(()) };
                let mut gone = self.gone.clone();
                tokio::select! {
                    biased;
                    result = stream.send_data(bytes) => result.map_err(|error| self.channel.stream_failed(error)),
                    // A process that never reads must not hold the stream of whoever has gone.
                    _ = gone.changed() => Ok(()),
                }
            }
            ProcessInput::CloseStdin => {
                if let Some(stream) = self.stream.lock().await.upgrade() {
                    stream.end();
                }
                Ok(())
            }
            // Beside the stream: a process that does not read must still be reached.
            ProcessInput::Resize(size) => {
                let request = Resize { id: self.id.as_str().to_owned(), terminal: Some(terminal(size)) };
                self.channel.command(Operation::Resize(request)).await
            }
            ProcessInput::Signal(number) => signal(&self.channel, &self.id, number).await,
        };
        match result {
            // It has ended: what is sent to it vanishes.
            Err(GuestError::Refused {
                kind: ErrorKind::Conflict | ErrorKind::NotFound | ErrorKind::Unavailable,
                ..
            }) => Ok(()),
            result => result,
        }
    }
}

fn new_id() -> Result<ProcessId, GuestError> {
    let mut random = [0; 8];
    getrandom::fill(&mut random)
        .map_err(|error| GuestError::Unreachable(format!("no random numbers: {error}")))?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Ok(ProcessId::from_parts(u64::try_from(now.as_millis()).unwrap_or(0), u64::from_le_bytes(random)))
}

fn terminal(size: TerminalSize) -> Terminal {
    Terminal { columns: size.columns.into(), rows: size.rows.into() }
}

fn status(exited: Exited) -> ExitStatus {
    let signal = exited.signal.map(|number| u8::try_from(number).unwrap_or(u8::MAX));
    ExitStatus { code: exited.code, signal, timed_out: exited.timed_out }
}

fn describe(process: messages::Process) -> Option<ProcessInfo> {
    Some(ProcessInfo {
        id: process.id.parse().ok()?,
        pid: process.pid,
        command: process.command.iter().map(|word| clean(word)).collect(),
        command_omitted: process.command_omitted,
        age_ms: process.age_ms,
        exit: process.exit.map(status),
        stdout_bytes: process.stdout_bytes,
        stderr_bytes: process.stderr_bytes,
        detached: process.detached,
        terminal: process.terminal,
        stdin: process.stdin,
    })
}
