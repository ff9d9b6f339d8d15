//! Starts of commands.

use std::sync::Arc;
use std::time::Duration;

use microvm_protocol::messages::Exec;
use tokio::runtime::Handle;
use tokio::sync::oneshot;

use super::life::{self, Life};
use crate::core::agent::Agent;
use crate::core::failure::{AgentError, AgentResult};
use crate::core::platform::{Platform, Programs, Started};
use crate::core::process::Process;

/// Starts a command. Once it runs it is in the table and followed to its end, whatever becomes of the caller.
pub(in crate::core) async fn start<P: Platform>(
    agent: &Arc<Agent<P>>,
    request: Exec,
) -> AgentResult<Arc<Process<P>>> {
    let (report, reported) = oneshot::channel();
    let task_agent = Arc::clone(agent);
    // One task from beginning to end: every change of tasks costs an emulated guest 0.1 ms.
    agent.spawn(&Handle::current(), async move {
        let agent = Arc::clone(&task_agent);
        // Finding a program and executing it may wait for a disk.
        let started = tokio::task::spawn_blocking(move || start_now(&agent, request)).await;
        let started = started
            .unwrap_or_else(|error| Err(AgentError::internal(format!("the helper thread failed: {error}"))));
        match started {
            Ok((process, life)) => {
                // The command keeps running if its caller is gone.
                let _ = report.send(Ok(Arc::clone(&process)));
                life::follow(&task_agent, &process, life).await;
            }
            Err(error) => drop(report.send(Err(error))),
        }
    });
    reported.await.map_err(|_| AgentError::internal("the start was cancelled"))?
}

/// A process that runs, with the ends that are followed.
type Begun<P> = (Arc<Process<P>>, Life<<P as Programs>::Output>);

fn start_now<P: Platform>(agent: &Agent<P>, request: Exec) -> AgentResult<Begun<P>> {
    if agent.processes.contains(&request.id) {
        return Err(AgentError::invalid(format!("there is a process {} already", request.id)));
    }
    let Started { pid, child, stdin, stdout, stderr, exited } =
        agent.platform.start(&request, &agent.defaults())?;
    let timeout = (request.timeout_ms > 0).then(|| Duration::from_millis(request.timeout_ms));
    let process = Arc::new(Process::new(request, pid, child, stdin));
    // The caller is the first reader: no output is dropped before it has begun.
    process.lock().has_reader = true;
    agent.processes.insert(Arc::clone(&process));
    Ok((process, Life { stdout, stderr, exited, timeout }))
}
