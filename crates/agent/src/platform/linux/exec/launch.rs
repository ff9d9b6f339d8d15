//! Starts of programs, from the request to the streams.

use std::os::fd::AsRawFd as _;
use std::sync::{Arc, Mutex};

use microvm_protocol::messages::{Exec, Exited};
use rustix::io::Errno;
use tokio::sync::oneshot;

use super::child::LinuxChild;
use super::control_group::ControlGroups;
use super::plan::{Plan, plan};
use super::reaper::Reaper;
use super::spawn::{SpawnPlan, SpawnStep, spawn};
use super::stdio;
use super::streams::{InputEnd, OutputEnd};
use crate::core::failure::{AgentError, AgentResult, show};
use crate::core::platform::{Defaults, Started};
use crate::platform::linux::Linux;

/// Parts of the agent that starts need.
pub(in crate::platform::linux) struct Tools<'a> {
    pub(in crate::platform::linux) reaper: &'a Reaper,
    pub(in crate::platform::linux) groups: &'a Arc<ControlGroups>,
    /// The agent is shielded from the out-of-memory killer by a score, which programs must not inherit.
    pub(in crate::platform::linux) shielded: bool,
}

/// Starts a program with streams, in a control group of its own.
pub(in crate::platform::linux) fn start(
    tools: &Tools<'_>,
    request: &Exec,
    defaults: &Defaults,
) -> AgentResult<Started<Linux>> {
    let plan = plan(request, defaults)?;
    let failed = |error| AgentError::system("make the streams of the command", error);
    let streams = match request.terminal {
        Some(size) => stdio::terminal(size, plan.user.uid),
        None => stdio::pipes(request.stdin),
    }
    .map_err(failed)?;
    let is_terminal = request.terminal.is_some();
    let terminal = if is_terminal { Some(streams.stdout.try_clone().map_err(failed)?) } else { None };
    let stdin = streams.stdin.map(|stdin| InputEnd::new(stdin, is_terminal)).transpose().map_err(failed)?;
    let stdout = OutputEnd::new(streams.stdout).map_err(failed)?;
    let stderr = streams.stderr.map(OutputEnd::new).transpose().map_err(failed)?;
    let group = tools.groups.take();
    // Without root nobody can become another user: programs run as the agent's then.
    let may_change_user = rustix::process::geteuid().is_root();
    // Before the start: a child may end before its number is known here.
    let guard = tools.reaper.announce();
    let result = spawn(&SpawnPlan {
        candidates: &plan.candidates,
        arguments: &plan.arguments,
        environment: &plan.environment,
        directories: &plan.directories,
        insists: plan.insists,
        identity: may_change_user.then_some((plan.user.uid, plan.user.gid, &*plan.user.groups)),
        stdio: [streams.child[0].as_raw_fd(), streams.child[1].as_raw_fd(), streams.child[2].as_raw_fd()],
        terminal: is_terminal,
        shielded: tools.shielded,
        control_group: group.as_ref().map(|group| group.directory().as_raw_fd()),
    });
    let pid = result
        .map_err(|(step, error)| describe(step, error, request, first_directory(&plan), &plan.user.name))?;
    let exited = guard.claim(pid);
    let child = LinuxChild { pid, terminal, group: Mutex::new(group), groups: Arc::clone(tools.groups) };
    Ok(Started { pid, child, stdin, stdout, stderr, exited })
}

/// Starts a program without streams and without a control group, to measure a start.
pub(in crate::platform::linux) fn start_bare(
    tools: &Tools<'_>,
    request: &Exec,
    defaults: &Defaults,
) -> AgentResult<oneshot::Receiver<Exited>> {
    let plan = plan(request, defaults)?;
    let null = std::fs::File::options().read(true).write(true).open("/dev/null");
    let null = null.map_err(|error| AgentError::system("open /dev/null", error))?;
    let guard = tools.reaper.announce();
    let pid = spawn(&SpawnPlan {
        candidates: &plan.candidates,
        arguments: &plan.arguments,
        environment: &plan.environment,
        directories: &plan.directories,
        insists: plan.insists,
        identity: None,
        stdio: [null.as_raw_fd(); 3],
        terminal: false,
        shielded: tools.shielded,
        control_group: None,
    })
    .map_err(|(step, error)| describe(step, error, request, first_directory(&plan), &plan.user.name))?;
    Ok(guard.claim(pid))
}

fn first_directory(plan: &Plan) -> &[u8] {
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
        (SpawnStep::Directory, Errno::NOENT) => {
            AgentError::not_found(format!("the working directory {directory} does not exist in this guest"))
        }
        (SpawnStep::Directory, Errno::NOTDIR) => {
            AgentError::invalid(format!("the working directory {directory} is no directory in this guest"))
        }
        (SpawnStep::Directory, error) => {
            AgentError::system(format!("enter the working directory {directory}"), error)
        }
        (SpawnStep::Identity, error) => AgentError::system(format!("become user {user}"), error),
        (SpawnStep::Clone, error) => AgentError::system("start another process", error),
        (step, error) => AgentError::system(format!("prepare the process ({step:?})"), error),
    }
}
