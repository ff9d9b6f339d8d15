//! The reader of a process: output to the host, input from it.

use std::sync::Arc;

use bytes::Bytes;
use microvm_protocol::frame::GUEST_BULK;
use microvm_protocol::messages::{Attach, Exec, FailureKind, Reply, Started};
use microvm_protocol::mux::{Incoming, StreamError, StreamHandle};

use crate::core::agent::Agent;
use crate::core::failure::{AgentError, AgentResult};
use crate::core::platform::{Input as _, Platform};
use crate::core::process::{OutputBuffer, Process};

/// Starts a command and serves its reader until all output was taken or the host is gone.
pub(in crate::core) async fn exec<P: Platform>(
    agent: &Arc<Agent<P>>,
    stream: &StreamHandle,
    request: Exec,
) -> AgentResult<()> {
    let process = super::start(agent, request).await?;
    serve(&process, stream, [None, None]).await
}

/// Becomes the reader of a running or ended process.
pub(in crate::core) async fn attach<P: Platform>(
    agent: &Arc<Agent<P>>,
    stream: &StreamHandle,
    request: Attach,
) -> AgentResult<()> {
    let process = agent.processes.get(&request.id)?;
    serve(&process, stream, [request.stdout, request.stderr]).await
}

/// Records the end of a reader when dropped, so that a detached process does not wait for it.
struct ReaderMark<'a, P: Platform> {
    process: &'a Process<P>,
    number: u64,
}

impl<P: Platform> Drop for ReaderMark<'_, P> {
    fn drop(&mut self) {
        let mut state = self.process.lock();
        // Otherwise a newer reader has replaced this one and continues to read.
        if state.reader == self.number {
            state.has_reader = false;
        }
        drop(state);
        self.process.notify();
    }
}

async fn serve<P: Platform>(
    process: &Process<P>,
    stream: &StreamHandle,
    from: [Option<u64>; 2],
) -> AgentResult<()> {
    let (mark, started) = {
        let mut state = process.lock();
        state.reader += 1;
        state.has_reader = true;
        let offsets = [state.outputs[0].seek(from[0]), state.outputs[1].seek(from[1])];
        let started = Started { pid: process.pid, stdout_offset: offsets[0], stderr_offset: offsets[1] };
        (ReaderMark { process, number: state.reader }, started)
    };
    process.notify();
    stream.send_message(Reply::Started(started)).await?;
    tokio::select! {
        result = send_output(process, stream, mark.number) => result,
        error = take_input(process, stream) => Err(error.into()),
    }
}

async fn send_output<P: Platform>(
    process: &Process<P>,
    stream: &StreamHandle,
    reader: u64,
) -> AgentResult<()> {
    let mut changed = process.changed.subscribe();
    loop {
        changed.borrow_and_update();
        let (stdout, stderr, exit) = {
            let mut state = process.lock();
            if state.reader != reader {
                return Err(AgentError::new(
                    FailureKind::Conflict,
                    "another reader has taken this process over",
                ));
            }
            let complete = state.is_complete();
            let stdout = state.outputs[0].take(GUEST_BULK);
            let stderr = state.outputs[1].take(GUEST_BULK);
            let all_taken = state.outputs.iter().all(OutputBuffer::is_taken);
            (stdout, stderr, if complete && all_taken { state.exit } else { None })
        };
        let nothing = stdout.is_empty() && stderr.is_empty();
        if !nothing {
            // There is room again.
            process.notify();
        }
        if !stdout.is_empty() {
            stream.send_data(stdout).await?;
        }
        if !stderr.is_empty() {
            stream.send_data_err(stderr).await?;
        }
        if let Some(exit) = exit {
            stream.send_message(Reply::Exited(exit)).await?;
            return Ok(());
        }
        if nothing && changed.changed().await.is_err() {
            return Err(AgentError::internal("the process was forgotten"));
        }
    }
}

/// Passes input on. Returns only when the stream has ended.
async fn take_input<P: Platform>(process: &Process<P>, stream: &StreamHandle) -> StreamError {
    loop {
        match stream.receive().await {
            Ok(Some(Incoming::Data(bytes))) => write_input(process, bytes).await,
            Ok(Some(_)) => {}
            Ok(None) => {
                let mark = process.stdin.lock().await.as_ref().and_then(|stdin| stdin.end_mark());
                match mark {
                    Some(mark) => write_input(process, Bytes::from_static(mark)).await,
                    None => drop(process.stdin.lock().await.take()),
                }
                // End of input does not end the session: output continues.
                return std::future::pending().await;
            }
            Err(error) => return error,
        }
    }
}

/// Writes input. A process that no longer reads its input gets no more of it; that is no failure of the command.
async fn write_input<P: Platform>(process: &Process<P>, bytes: Bytes) {
    let mut stdin = process.stdin.lock().await;
    if let Some(target) = stdin.as_ref()
        && target.write_all(&bytes).await.is_err()
    {
        stdin.take();
    }
}
