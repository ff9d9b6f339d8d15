//! Starts a command and everything that looks after it.

use std::os::fd::{AsRawFd as _, OwnedFd};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use microvm_protocol::messages::{Exec, Exited};
use rustix::io::Errno;
use tokio::io::Interest;
use tokio::runtime::Handle;
use tokio::sync::oneshot;

use super::plan::plan;
use super::process::Process;
use super::spawn::{SpawnPlan, SpawnStep, spawn};
use super::{pump, stdio};
use crate::agent::Agent;
use crate::failure::{AgentError, AgentResult, show};

/// Starts a command. Once it runs it is in the table, whatever becomes of the caller.
pub(crate) async fn start(agent: &Arc<Agent>, request: Exec) -> AgentResult<Arc<Process>> {
    let agent = Arc::clone(agent);
    let runtime = Handle::current();
    // Looking programs up and executing them may wait for a disk.
    tokio::task::spawn_blocking(move || start_now(&agent, request, &runtime))
        .await
        .map_err(|error| AgentError::internal(format!("the start was broken off: {error}")))?
}

fn start_now(agent: &Arc<Agent>, request: Exec, runtime: &Handle) -> AgentResult<Arc<Process>> {
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
    let group = agent.control_groups.make(&request.id);
    let may_change_user = rustix::process::geteuid().is_root();
    let guard = agent.reaper.announce();
    let result = spawn(&SpawnPlan {
        candidates: &plan.candidates,
        arguments: &plan.arguments,
        environment: &plan.environment,
        directory: &plan.directory,
        identity: may_change_user.then_some((plan.user.uid, plan.user.gid, &*plan.user.groups)),
        stdio: [streams.child[0].as_raw_fd(), streams.child[1].as_raw_fd(), streams.child[2].as_raw_fd()],
        terminal: request.terminal.is_some(),
        control_group: group.as_ref().map(|(_, file)| file.as_raw_fd()),
    });
    let pid = result.map_err(|(step, error)| {
        describe(step, error, &request, plan.directory.as_bytes(), &plan.user.name)
    })?;
    let exited = guard.claim(pid);
    drop(streams.child);

    let _inside = runtime.enter();
    let wrap =
        |descriptor: OwnedFd, interest| crate::descriptor::register(descriptor, interest).map_err(failed);
    let terminal =
        if request.terminal.is_some() { Some(streams.stdout.try_clone().map_err(failed)?) } else { None };
    let stdin = streams.stdin.map(|stdin| wrap(stdin, Interest::WRITABLE)).transpose()?;
    let stdout = wrap(streams.stdout, Interest::READABLE)?;
    let stderr = streams.stderr.map(|stderr| wrap(stderr, Interest::READABLE)).transpose()?;
    let is_terminal = terminal.is_some();
    let process = Arc::new(Process::new(
        request.id,
        pid,
        request.command,
        request.detach,
        is_terminal,
        stdin,
        terminal,
        group.map(|(group, _)| group),
    ));
    // The caller is the first reader: nothing is dropped before it has begun.
    process.lock().has_reader = true;
    agent.processes.insert(Arc::clone(&process));
    agent.spawn(runtime, pump::pump(Arc::clone(&process), 0, stdout));
    if let Some(stderr) = stderr {
        agent.spawn(runtime, pump::pump(Arc::clone(&process), 1, stderr));
    }
    agent.spawn(runtime, watch_end(Arc::clone(&process), exited, request.timeout_ms));
    Ok(process)
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
        directory: &plan.directory,
        identity: None,
        stdio: [null.as_raw_fd(); 3],
        terminal: false,
        control_group: None,
    })
    .map_err(|(step, error)| describe(step, error, &request, plan.directory.as_bytes(), &plan.user.name))?;
    Ok(guard.claim(pid))
}

/// Notes the end of a process, and brings it about when its time is up.
async fn watch_end(process: Arc<Process>, mut exited: oneshot::Receiver<Exited>, timeout_ms: u64) {
    let exit = if timeout_ms == 0 {
        exited.await
    } else {
        match tokio::time::timeout(Duration::from_millis(timeout_ms), &mut exited).await {
            Ok(exit) => exit,
            Err(_) => {
                process.lock().timed_out = true;
                process.kill_all();
                exited.await
            }
        }
    };
    // The reaper drops no claim while it lives; without it the end is unknown.
    let mut exit = exit.unwrap_or_default();
    let mut state = process.lock();
    exit.timed_out = state.timed_out;
    state.exit = Some(exit);
    state.ended = Some(Instant::now());
    let timed_out = state.timed_out;
    drop(state);
    if !timed_out {
        // Its group goes now if nothing else is in it, else with the process's entry.
        let group = process.group.lock().unwrap_or_else(PoisonError::into_inner).take();
        drop(group);
    }
    process.notify();
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
