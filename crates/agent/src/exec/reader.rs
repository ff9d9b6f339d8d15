//! The host's side of a process: output out, input in.

use std::sync::Arc;

use bytes::Bytes;
use microvm_protocol::frame::GUEST_BULK;
use microvm_protocol::messages::{Attach, Exec, FailureKind, Reply, Started};
use microvm_protocol::mux::{Incoming, StreamError, StreamHandle};
use rustix::io::Errno;

use super::process::Process;
use crate::agent::Agent;
use crate::failure::{AgentError, AgentResult};

/// Starts a command and serves it until its output has been taken or the host is gone.
pub(crate) async fn exec(agent: &Arc<Agent>, stream: &StreamHandle, request: Exec) -> AgentResult<()> {
    let process = super::start(agent, request).await?;
    serve(&process, stream, [None, None]).await
}

/// Takes up a process again.
pub(crate) async fn attach(agent: &Arc<Agent>, stream: &StreamHandle, request: Attach) -> AgentResult<()> {
    let process = agent.processes.get(&request.id)?;
    serve(&process, stream, [request.stdout, request.stderr]).await
}

/// Marks the end of a reader, so that a detached process is not held up for it.
struct ReaderMark<'a> {
    process: &'a Process,
    number: u64,
}

impl Drop for ReaderMark<'_> {
    fn drop(&mut self) {
        let mut state = self.process.lock();
        if state.reader == self.number {
            state.has_reader = false;
        }
        drop(state);
        self.process.notify();
    }
}

async fn serve(process: &Process, stream: &StreamHandle, from: [Option<u64>; 2]) -> AgentResult<()> {
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

async fn send_output(process: &Process, stream: &StreamHandle, reader: u64) -> AgentResult<()> {
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
            let all_taken = state.outputs.iter().all(super::output::Output::is_taken);
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

/// Ends only with the stream.
async fn take_input(process: &Process, stream: &StreamHandle) -> StreamError {
    loop {
        match stream.receive().await {
            Ok(Some(Incoming::Data(bytes))) => write_input(process, bytes).await,
            Ok(Some(_)) => {}
            Ok(None) => {
                if process.is_terminal {
                    // End-of-transmission, as if typed.
                    write_input(process, Bytes::from_static(&[4])).await;
                } else {
                    process.stdin.lock().await.take();
                }
                return std::future::pending().await;
            }
            Err(error) => return error,
        }
    }
}

/// Writes input; a process that does not want it any more makes it vanish.
async fn write_input(process: &Process, mut bytes: Bytes) {
    let mut stdin = process.stdin.lock().await;
    let Some(target) = stdin.as_ref() else { return };
    while !bytes.is_empty() {
        let Ok(mut guard) = target.writable().await else { break };
        match rustix::io::write(target.get_ref(), &bytes) {
            Ok(count) => drop(bytes.split_to(count)),
            Err(Errno::AGAIN) => guard.clear_ready(),
            Err(Errno::INTR) => {}
            Err(_) => {
                drop(guard);
                stdin.take();
                return;
            }
        }
    }
}
