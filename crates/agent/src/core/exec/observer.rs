//! Reads of a process's output beside its reader. They take nothing from the reader and do not hold up the process.

use std::sync::Arc;

use microvm_protocol::frame::GUEST_BULK;
use microvm_protocol::messages::{FailureKind, ReadOutput, Reply, Started};
use microvm_protocol::mux::StreamHandle;

use crate::core::agent::Agent;
use crate::core::failure::{AgentError, AgentResult};
use crate::core::platform::Platform;
use crate::core::process::Process;

/// Sends the output of a process that is still kept; with `follow` also new output, until it has ended or the host is gone.
///
/// # Errors
/// If the process is not known, or it writes faster than the host takes, so that bytes were dropped in between.
pub(in crate::core) async fn read_output<P: Platform>(
    agent: &Arc<Agent<P>>,
    stream: &StreamHandle,
    request: ReadOutput,
) -> AgentResult<()> {
    let process = agent.processes.get(&request.id)?;
    let (at, until) = {
        let state = process.lock();
        let begin = |index: usize, asked: Option<u64>| {
            let output = &state.outputs[index];
            asked.map_or(output.start(), |offset| offset.clamp(output.start(), output.end()))
        };
        let at = [begin(0, request.stdout), begin(1, request.stderr)];
        (at, (!request.follow).then(|| [state.outputs[0].end(), state.outputs[1].end()]))
    };
    let started = Started { pid: process.pid, stdout_offset: at[0], stderr_offset: at[1] };
    stream.send_message(Reply::Started(started)).await?;
    tokio::select! {
        result = send(&process, stream, at, until) => result,
        error = gone(stream) => Err(error),
    }
}

async fn send<P: Platform>(
    process: &Process<P>,
    stream: &StreamHandle,
    mut at: [u64; 2],
    until: Option<[u64; 2]>,
) -> AgentResult<()> {
    let mut changed = process.changed.subscribe();
    loop {
        changed.borrow_and_update();
        let (parts, exit) = {
            let state = process.lock();
            for (output, at) in state.outputs.iter().zip(at) {
                // A gap would be taken for continuous output: it is an error and never silent.
                if output.start() > at {
                    let lost = output.start() - at;
                    return Err(AgentError::new(
                        FailureKind::Exhausted,
                        format!("{lost} bytes of output were dropped before they could be read"),
                    ));
                }
            }
            let exit = if state.is_complete() { state.exit } else { None };
            ([0, 1].map(|index| state.outputs[index].peek(at[index], GUEST_BULK)), exit)
        };
        let nothing = parts.iter().all(bytes::Bytes::is_empty);
        let [stdout, stderr] = parts;
        at = [at[0] + stdout.len() as u64, at[1] + stderr.len() as u64];
        if !stdout.is_empty() {
            stream.send_data(stdout).await?;
        }
        if !stderr.is_empty() {
            stream.send_data_err(stderr).await?;
        }
        if nothing && let Some(exit) = exit {
            stream.send_message(Reply::Exited(exit)).await?;
            return Ok(());
        }
        // Checked after sending, because only now the requested part is complete. If the exit is known already, the next round
        // sends it.
        if until.is_some_and(|until| at[0] >= until[0] && at[1] >= until[1]) && exit.is_none() {
            return Ok(());
        }
        if nothing && changed.changed().await.is_err() {
            return Err(AgentError::internal("the process was forgotten"));
        }
    }
}

/// Ends with the stream; an observer sends no input.
async fn gone(stream: &StreamHandle) -> AgentError {
    loop {
        match stream.receive().await {
            Ok(Some(_)) => {}
            Ok(None) => std::future::pending::<()>().await,
            Err(error) => return error.into(),
        }
    }
}
