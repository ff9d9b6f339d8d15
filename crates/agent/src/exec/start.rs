//! Starts a command and everything that looks after it.

use std::os::fd::AsRawFd as _;
use std::sync::Arc;
use std::time::Duration;

use microvm_protocol::messages::{Exec, Exited};
use rustix::io::Errno;
use tokio::io::Interest;
use tokio::runtime::Handle;
use tokio::sync::oneshot;

use super::life::Life;
use super::plan::plan;
use super::process::Process;
use super::spawn::{SpawnPlan, SpawnStep, spawn};
use super::{life, stdio};
use crate::agent::Agent;
use crate::failure::{AgentError, AgentResult, show};

/// Starts a command. Once it runs it is in the table and looked after, whatever becomes of the caller.
pub(crate) async fn start(agent: &Arc<Agent>, request: Exec) -> AgentResult<Arc<Process>> {
    let (report, reported) = oneshot::channel();
    let looking_after = Arc::clone(agent);
    // One task from beginning to end: every change of hands costs an emulated guest 0.1 ms.
    agent.spawn(&Handle::current(), async move {
        let agent = Arc::clone(&looking_after);
        // Looking programs up and executing them may wait for a disk.
        let started = tokio::task::spawn_blocking(move || start_now(&agent, request)).await;
        let started = started
            .unwrap_or_else(|error| Err(AgentError::internal(format!("the start was broken off: {error}"))));
        match started {
            Ok((process, life)) => {
                // Without its caller it goes on.
                let _ = report.send(Ok(Arc::clone(&process)));
                life::follow(&looking_after, &process, life).await;
            }
            Err(error) => drop(report.send(Err(error))),
        }
    });
    reported.await.map_err(|_| AgentError::internal("the start was broken off"))?
}

fn start_now(agent: &Arc<Agent>, request: Exec) -> AgentResult<(Arc<Process>, Life)> {
    if agent.processes.contains(&request.id) {
        return Err(AgentError::invalid(format!("there is a process {} already", request.id)));
    }
    let plan = plan(&request, &agent.defaults())?;
    let failed = |error| AgentError::system("make the streams of the command", error);
    let streams = match request.terminal {
        Some(size) => stdio::terminal(size, plan.user.uid),
        None => stdio::pipes(request.stdin),
    }
    .map_err(failed)?;
    let terminal =
        if request.terminal.is_some() { Some(streams.stdout.try_clone().map_err(failed)?) } else { None };
    let wrap = |descriptor, interest| crate::descriptor::register(descriptor, interest).map_err(failed);
    let stdin = streams.stdin.map(|stdin| wrap(stdin, Interest::WRITABLE)).transpose()?;
    let stdout = wrap(streams.stdout, Interest::READABLE)?;
    let stderr = streams.stderr.map(|stderr| wrap(stderr, Interest::READABLE)).transpose()?;
    let group = agent.control_groups.take();
    let may_change_user = rustix::process::geteuid().is_root();
    let guard = agent.reaper.announce();
    let result = spawn(&SpawnPlan {
        candidates: &plan.candidates,
        arguments: &plan.arguments,
        environment: &plan.environment,
        directories: &plan.directories,
        identity: may_change_user.then_some((plan.user.uid, plan.user.gid, &*plan.user.groups)),
        stdio: [streams.child[0].as_raw_fd(), streams.child[1].as_raw_fd(), streams.child[2].as_raw_fd()],
        terminal: request.terminal.is_some(),
        shielded: agent.shielded,
        control_group: group.as_ref().map(|group| group.directory().as_raw_fd()),
    });
    let pid = result
        .map_err(|(step, error)| describe(step, error, &request, first_directory(&plan), &plan.user.name))?;
    let exited = guard.claim(pid);
    let timeout = (request.timeout_ms > 0).then(|| Duration::from_millis(request.timeout_ms));
    let process = Arc::new(Process::new(request, pid, stdin, terminal, group));
    // The caller is the first reader: nothing is dropped before it has begun.
    process.lock().has_reader = true;
    agent.processes.insert(Arc::clone(&process));
    Ok((process, Life { stdout, stderr, exited, timeout }))
}

/// Starts a command without anyone to look at it or read from it, the way [`start`] does: for measuring.
pub(crate) fn start_bare(agent: &Agent, request: Exec) -> AgentResult<oneshot::Receiver<Exited>> {
    let plan = plan(&request, &agent.defaults())?;
    let null = std::fs::File::options().read(true).write(true).open("/dev/null");
    let null = null.map_err(|error| AgentError::system("open /dev/null", error))?;
    let guard = agent.reaper.announce();
    let pid = spawn(&SpawnPlan {
        candidates: &plan.candidates,
        arguments: &plan.arguments,
        environment: &plan.environment,
        directories: &plan.directories,
        identity: None,
        stdio: [null.as_raw_fd(); 3],
        terminal: false,
        shielded: agent.shielded,
        control_group: None,
    })
    .map_err(|(step, error)| describe(step, error, &request, first_directory(&plan), &plan.user.name))?;
    Ok(guard.claim(pid))
}

fn first_directory(plan: &super::plan::Plan) -> &[u8] {
    plan.directories.first().map_or(b"/", |directory| directory.as_bytes())
}

fn describe(step: SpawnStep, error: Errno, request: &Exec, directory: &[u8], user: &str) -> AgentError {
    let program = request.command.first().map_or("", String::as_str);
    let directory = show(directory);
    match (step, error) {
        (SpawnStep::Execute, Errno::NOENT | Errno::NOTDIR) => AgentError::not_found(format!(
            "no program `{program}` was found in this guest (or the interpreter it names is missing)"
        )),
        (SpawnStep::Execute, Errno::ACCESS) => {
            AgentError::system(format!("run `{program}` as {user}: not executable, or not allowed"), error)
        }
        (SpawnStep::Execute, Errno::TOOBIG) => AgentError::invalid(format!(
            "the arguments and variables of `{program}` are more than the guest's kernel takes"
        )),
        (SpawnStep::Execute, error) => AgentError::system(format!("run `{program}`"), error),
        (SpawnStep::Directory, Errno::NOENT | Errno::NOTDIR) => {
            AgentError::not_found(format!("the working directory {directory} does not exist in this guest"))
        }
        (SpawnStep::Directory, error) => {
            AgentError::system(format!("enter the working directory {directory}"), error)
        }
        (SpawnStep::Identity, error) => AgentError::system(format!("become user {user}"), error),
        (SpawnStep::Clone, error) => AgentError::system("start another process", error),
        (step, error) => AgentError::system(format!("prepare the process ({step:?})"), error),
    }
}
