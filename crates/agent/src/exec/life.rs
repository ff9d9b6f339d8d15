//! Goes with a process from its start to its end: its output, its exit, its time-out, and what there is to tidy up.

use std::os::fd::OwnedFd;
use std::sync::PoisonError;
use std::time::{Duration, Instant};

use microvm_protocol::messages::Exited;
use tokio::io::unix::AsyncFd;
use tokio::sync::oneshot;

use super::process::Process;
use super::pump::pump;
use crate::agent::Agent;

/// What a started process is followed by.
pub(super) struct Life {
    pub(super) stdout: AsyncFd<OwnedFd>,
    pub(super) stderr: Option<AsyncFd<OwnedFd>>,
    pub(super) exited: oneshot::Receiver<Exited>,
    pub(super) timeout: Option<Duration>,
}

/// Follows a process until it has ended and its outputs are closed everywhere.
pub(super) async fn follow(agent: &Agent, process: &Process, life: Life) {
    let stderr = async {
        if let Some(stderr) = &life.stderr {
            pump(agent, process, 1, stderr).await;
        }
    };
    tokio::join!(
        pump(agent, process, 0, &life.stdout),
        stderr,
        end(agent, process, life.exited, life.timeout)
    );
    if process.unlisted {
        agent.processes.forget(&process.id);
    }
}

/// Notes the end of a process, and brings it about when its time is up.
async fn end(
    agent: &Agent,
    process: &Process,
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
    // The reaper drops no claim while it lives; without it the end is unknown.
    let mut exit = exit.unwrap_or_default();
    let timed_out = {
        let mut state = process.lock();
        exit.timed_out = state.timed_out;
        state.exit = Some(exit);
        state.ended = Some(Instant::now());
        state.timed_out
    };
    process.notify();
    // Whoever waits for the end learns of it first; tidying up comes after.
    tokio::task::yield_now().await;
    if !timed_out {
        // If a process still lives in it, it can no longer be ended by the group; else the next command has it.
        let group = process.group.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(group) = group {
            agent.control_groups.give_back(group);
        }
    }
}
