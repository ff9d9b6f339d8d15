//! From a request to its answer.

use std::sync::Arc;

use microvm_protocol::messages::{
    Empty, GuestProcesses, Measured, Operation, Processes, Reply, Request, Shutdown,
};
use microvm_protocol::mux::StreamHandle;

use super::agent::{Agent, StartCommands};
use super::blocking::blocking;
use super::failure::{AgentError, AgentResult};
use super::platform::Platform;
use super::{exec, identity, measure, tcp};

/// Serves one stream of a session of `session_epoch` to its end.
pub(super) async fn run<P: Platform>(
    agent: Arc<Agent<P>>,
    session_epoch: u64,
    stream: StreamHandle,
    request: Request,
) {
    let stream = Arc::new(stream);
    match dispatch(&agent, session_epoch, &stream, request).await {
        Ok(()) => stream.end(),
        Err(error) => stream.fail(error.kind, &error.message),
    }
}

async fn dispatch<P: Platform>(
    agent: &Arc<Agent<P>>,
    session_epoch: u64,
    stream: &Arc<StreamHandle>,
    request: Request,
) -> AgentResult<()> {
    let operation = request
        .operation
        .ok_or_else(|| AgentError::unsupported("this agent is too old for that operation"))?;
    let reply = match operation {
        Operation::Configure(request) => {
            Reply::Configured(identity::configure(agent, session_epoch, request).await?)
        }
        Operation::Exec(request) => return exec::exec(agent, stream, request).await,
        Operation::Attach(request) => return exec::attach(agent, stream, request).await,
        Operation::Processes(_) => {
            // Sixteen descriptions of at most some KiB fit one frame.
            for some in agent.processes.all().chunks(16) {
                let processes = some.iter().map(|process| process.describe()).collect();
                stream.send_message(Reply::Processes(Processes { processes })).await?;
            }
            return Ok(());
        }
        Operation::Signal(request) => {
            agent.processes.get(&request.id)?.signal(request.signal)?;
            done()
        }
        Operation::Resize(request) => {
            let size = request.terminal.ok_or_else(|| AgentError::invalid("a terminal needs a size"))?;
            agent.processes.get(&request.id)?.resize(size)?;
            done()
        }
        Operation::ReadFile(request) => return P::read(stream, request).await,
        Operation::WriteFile(request) => {
            let owner = owner(agent, request.owner.as_deref()).await?;
            Reply::Written(P::write(stream, request, owner).await?)
        }
        Operation::Stat(request) => blocking(move || P::stat(&request.path)).await?,
        Operation::List(request) => return P::list(stream, request).await,
        Operation::MakeDirectory(request) => {
            let owner = owner(agent, request.owner.as_deref()).await?;
            blocking(move || P::make_directory(&request, owner)).await?;
            done()
        }
        Operation::Rename(request) => {
            blocking(move || P::rename(&request)).await?;
            done()
        }
        Operation::Remove(request) => {
            blocking(move || P::remove(&request)).await?;
            done()
        }
        Operation::Watch(request) => return P::watch(stream, request).await,
        Operation::PushArchive(request) => {
            let owner = owner(agent, request.owner.as_deref()).await?;
            Reply::Written(P::push_archive(stream, request.path, owner).await?)
        }
        Operation::PullArchive(request) => return P::pull_archive(stream, request).await,
        Operation::PullLayer(_) => return P::pull_layer(stream).await,
        Operation::PullRoot(request) => return P::pull_root(stream, request.path).await,
        Operation::ConnectPort(request) => return tcp::connect(stream, request.port).await,
        Operation::HashFile(request) => blocking(move || P::hash(&request.path)).await?,
        Operation::SystemInfo(_) => {
            let agent = Arc::clone(agent);
            blocking(move || Ok(Reply::System(agent.platform.information()))).await?
        }
        Operation::GuestProcesses(_) => return guest_processes(agent, stream).await,
        Operation::Health(_) => health(agent).await?,
        Operation::Shutdown(request) => {
            shut_down(agent, request)?;
            done()
        }
        Operation::ReadOutput(request) => return exec::read_output(agent, stream, request).await,
        Operation::SetClock(time) => {
            identity::set_clock(agent, time.wall_clock_ns)?;
            done()
        }
        Operation::MeasureSink(_) => Reply::Written(measure::sink(stream).await?),
        Operation::MeasureSource(request) => return measure::source(stream, request.bytes).await,
        Operation::MeasureSpawn(request) => Reply::Measured(measure::spawns(agent, request).await?),
    };
    stream.send_message(reply).await?;
    Ok(())
}

/// Resolves the owner of what is to be written; that reads files of the guest.
async fn owner<P: Platform>(
    agent: &Arc<Agent<P>>,
    specification: Option<&str>,
) -> AgentResult<Option<P::Owner>> {
    let Some(named) = specification else { return Ok(None) };
    let (agent, named) = (Arc::clone(agent), named.to_owned());
    blocking(move || P::owner(&named, &agent.defaults())).await.map(Some)
}

/// Answers with all processes of the guest, some at a time, by number.
async fn guest_processes<P: Platform>(agent: &Arc<Agent<P>>, stream: &StreamHandle) -> AgentResult<()> {
    let agent = Arc::clone(agent);
    let mut processes = blocking(move || agent.platform.processes()).await?;
    processes.sort_unstable_by_key(|process| process.pid);
    for some in processes.chunks(8) {
        stream.send_message(Reply::GuestProcesses(GuestProcesses { processes: some.to_vec() })).await?;
    }
    Ok(())
}

async fn health<P: Platform>(agent: &Arc<Agent<P>>) -> AgentResult<Reply> {
    let agent = Arc::clone(agent);
    blocking(move || {
        let usage = agent.platform.usage();
        Ok(Reply::Measured(Measured {
            cpu_percent: usage.cpu_percent,
            memory_percent: usage.memory_percent,
            disk_percent: usage.disk_percent,
            start_commands_done: matches!(
                agent.start_commands(),
                StartCommands::Done | StartCommands::NotGiven
            ),
            nanoseconds: Vec::new(),
            not_started: agent.not_started(),
        }))
    })
    .await
}

/// Begins to end the guest; returns at once.
fn shut_down<P: Platform>(agent: &Arc<Agent<P>>, request: Shutdown) -> AgentResult<()> {
    if !agent.platform.owns_machine() {
        return Err(AgentError::unsupported("this agent does not run in a guest of its own"));
    }
    agent.spawn(&tokio::runtime::Handle::current(), agent.platform.shut_down(request));
    Ok(())
}

fn done() -> Reply {
    Reply::Done(Empty {})
}
