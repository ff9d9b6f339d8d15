//! Floors for benchmarks: the channel without a file, a program without the channel.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use microvm_protocol::frame::GUEST_BULK;
use microvm_protocol::messages::{Exec, MeasureSpawn, Measured, Written};
use microvm_protocol::mux::{Incoming, StreamHandle};

use super::agent::Agent;
use super::failure::{AgentError, AgentResult};
use super::platform::Platform;

/// Counts the bytes that come and throws them away.
pub(super) async fn sink(stream: &StreamHandle) -> AgentResult<Written> {
    let mut bytes = 0;
    while let Some(incoming) = stream.receive().await? {
        if let Incoming::Data(data) = incoming {
            bytes += data.len() as u64;
        }
    }
    Ok(Written { bytes, left_out: None })
}

/// Sends made-up bytes; never zero, so that none travel as a run of zeros.
pub(super) async fn source(stream: &StreamHandle, bytes: u64) -> AgentResult<()> {
    let block = Bytes::from(vec![0x5a; GUEST_BULK]);
    let mut left = bytes;
    while left > 0 {
        let part = usize::try_from(left).unwrap_or(usize::MAX).min(block.len());
        stream.send_data(block.slice(..part)).await?;
        left -= part as u64;
    }
    Ok(())
}

/// Starts a program several times, one after the other, as commands are started; returns the times.
pub(super) async fn spawns<P: Platform>(
    agent: &Arc<Agent<P>>,
    request: MeasureSpawn,
) -> AgentResult<Measured> {
    if request.rounds > 1000 {
        return Err(AgentError::invalid("at most 1000 rounds"));
    }
    let idle = agent.platform.idle_program();
    let program = if request.program.is_empty() { idle.to_owned() } else { request.program };
    let mut nanoseconds = Vec::new();
    for _ in 0..request.rounds {
        let (agent, program) = (Arc::clone(agent), program.clone());
        let started = Instant::now();
        // As commands are started: the change of threads is a part of what is measured.
        let exited = tokio::task::spawn_blocking(move || {
            let request = Exec { command: vec![program], ..Exec::default() };
            agent.platform.start_bare(&request, &agent.defaults())
        });
        let exited = exited.await.map_err(|error| AgentError::internal(error.to_string()))??;
        exited.await.map_err(|_| AgentError::internal("the program's end was missed"))?;
        nanoseconds.push(u64::try_from(started.elapsed().as_nanos()).unwrap_or(u64::MAX));
    }
    Ok(Measured { nanoseconds, ..Measured::default() })
}
