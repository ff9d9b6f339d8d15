//! Floors for `microvm bench`: the channel without a file, a program without the channel.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use microvm_protocol::frame::GUEST_BULK;
use microvm_protocol::messages::{Exec, MeasureSpawn, Measured, Written};
use microvm_protocol::mux::{Incoming, StreamHandle};

use crate::agent::Agent;
use crate::failure::{AgentError, AgentResult};

/// Throws away what comes.
pub(crate) async fn sink(stream: &StreamHandle) -> AgentResult<Written> {
    let mut bytes = 0;
    while let Some(incoming) = stream.receive().await? {
        if let Incoming::Data(data) = incoming {
            bytes += data.len() as u64;
        }
    }
    Ok(Written { bytes, left_out: None })
}

/// Makes bytes up; never zero, so that nothing can be elided.
pub(crate) async fn source(stream: &StreamHandle, bytes: u64) -> AgentResult<()> {
    let block = Bytes::from(vec![0x5a; GUEST_BULK]);
    let mut left = bytes;
    while left > 0 {
        let part = usize::try_from(left).unwrap_or(usize::MAX).min(block.len());
        stream.send_data(block.slice(..part)).await?;
        left -= part as u64;
    }
    Ok(())
}

/// Starts a program so many times, one after the other, the way commands are started.
pub(crate) async fn spawns(agent: &Arc<Agent>, request: MeasureSpawn) -> AgentResult<Measured> {
    if request.rounds > 1000 {
        return Err(AgentError::invalid("at most 1000 rounds"));
    }
    let program = if request.program.is_empty() { "/bin/true".to_owned() } else { request.program };
    let mut nanoseconds = Vec::new();
    for _ in 0..request.rounds {
        let (agent, program) = (Arc::clone(agent), program.clone());
        let started = Instant::now();
        let exited = tokio::task::spawn_blocking(move || {
            crate::exec::start_bare(&agent, Exec { command: vec![program], ..Exec::default() })
        });
        let exited = exited.await.map_err(|error| AgentError::internal(error.to_string()))??;
        exited.await.map_err(|_| AgentError::internal("the program's end was missed"))?;
        nanoseconds.push(u64::try_from(started.elapsed().as_nanos()).unwrap_or(u64::MAX));
    }
    Ok(Measured { nanoseconds, ..Measured::default() })
}
