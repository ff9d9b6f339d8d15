//! A process from its start to its end: output, time-out, exit.

use std::time::{Duration, Instant};

use microvm_protocol::messages::Exited;
use tokio::sync::oneshot;

use super::pump::pump;
use crate::core::agent::Agent;
use crate::core::platform::Platform;
use crate::core::process::Process;

/// Ends of a started process that are followed.
pub(super) struct Life<O> {
    pub(super) stdout: O,
    pub(super) stderr: Option<O>,
    pub(super) exited: oneshot::Receiver<Exited>,
    pub(super) timeout: Option<Duration>,
}

/// Follows a process until it has ended and its outputs are closed everywhere.
pub(super) async fn follow<P: Platform>(agent: &Agent<P>, process: &Process<P>, life: Life<P::Output>) {
    let stderr = async {
        if let Some(stderr) = &life.stderr {
            pump(agent, process, 1, stderr).await;
        }
    };
    tokio::join!(pump(agent, process, 0, &life.stdout), stderr, end(process, life.exited, life.timeout));
    if process.unlisted {
        agent.processes.forget(&process.id);
    }
}

/// Records the end of a process, and kills it when its time is up.
async fn end<P: Platform>(
    process: &Process<P>,
    mut exited: oneshot::Receiver<Exited>,
    timeout: Option<Duration>,
) {
    let exit = match timeout {
        None => exited.await,
        Some(timeout) => match tokio::time::timeout(timeout, &mut exited).await {
            Ok(exit) => exit,
            Err(_) => {
                process.lock().timed_out = true;
                process.kill_all();
                exited.await
            }
        },
    };
    // The platform drops no sender while it lives; without it the end is unknown.
    let mut exit = exit.unwrap_or_default();
    let timed_out = {
        let mut state = process.lock();
        exit.timed_out = state.timed_out;
        state.exit = Some(exit);
        state.ended = Some(Instant::now());
        state.timed_out
    };
    process.notify();
    // Readers learn of the end first; tidying up comes after.
    tokio::task::yield_now().await;
    // After a time-out everything was killed, and may still be dying.
    if !timed_out {
        process.release();
    }
}
