//! From a request to whoever can answer it.

use std::sync::Arc;

use microvm_protocol::messages::{Operation, Processes, Reply, Request};
use microvm_protocol::mux::StreamHandle;

use crate::agent::Agent;
use crate::failure::{AgentError, AgentResult};
use crate::{exec, files, system};

/// Serves one stream of a session of `session_epoch` to its end.
pub(crate) async fn run(agent: Arc<Agent>, session_epoch: u64, stream: StreamHandle, request: Request) {
    let stream = Arc::new(stream);
    match dispatch(&agent, session_epoch, &stream, request).await {
        Ok(()) => stream.end(),
        Err(error) => stream.fail(error.kind, &error.message),
    }
}

async fn dispatch(
    agent: &Arc<Agent>,
    session_epoch: u64,
    stream: &Arc<StreamHandle>,
    request: Request,
) -> AgentResult<()> {
    let operation = request.operation.ok_or_else(|| {
        AgentError::new(
            microvm_protocol::messages::FailureKind::Unsupported,
            "this agent is too old for that operation",
        )
    })?;
    let reply = match operation {
        Operation::Configure(identity) => {
            Reply::Configured(system::identity::configure(agent, session_epoch, identity).await?)
        }
        Operation::Exec(request) => return exec::exec(agent, stream, request).await,
        Operation::Attach(request) => return exec::attach(agent, stream, request).await,
        Operation::Processes(_) => {
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
        Operation::ReadFile(request) => return files::read(stream, request).await,
        Operation::WriteFile(request) => {
            let owner = owner(agent, request.owner.as_deref()).await?;
            Reply::Written(files::write(stream, request, owner).await?)
        }
        Operation::Stat(request) => files::blocking(move || files::stat(&request.path)).await?,
        Operation::List(request) => return files::list(stream, request).await,
        Operation::MakeDirectory(request) => {
            let owner = owner(agent, request.owner.as_deref()).await?;
            files::blocking(move || files::make_directory(&request, owner)).await?
        }
        Operation::Rename(request) => files::blocking(move || files::rename(&request)).await?,
        Operation::Remove(request) => files::blocking(move || files::remove(&request)).await?,
        Operation::Watch(request) => return files::watch(stream, request).await,
        Operation::PushArchive(request) => {
            let owner = owner(agent, request.owner.as_deref()).await?;
            Reply::Written(files::unpack(stream, request.path, owner).await?)
        }
        Operation::PullArchive(request) => return files::pack(stream, request).await,
        Operation::PullRoot(request) => return files::pack_root(stream, request.path).await,
        Operation::ConnectPort(request) => return system::port::connect(stream, request.port).await,
        Operation::HashFile(request) => files::blocking(move || files::hash(&request.path)).await?,
        Operation::SystemInfo(_) => {
            files::blocking(|| Ok(Reply::System(system::info::system_info()))).await?
        }
        Operation::GuestProcesses(_) => return system::processes::list(stream).await,
        Operation::Health(_) => {
            let agent = Arc::clone(agent);
            files::blocking(move || Ok(Reply::Measured(system::health::health(&agent)))).await?
        }
        Operation::Shutdown(request) => {
            system::shutdown::begin(agent, request)?;
            done()
        }
        Operation::ReadOutput(request) => return exec::read_output(agent, stream, request).await,
        Operation::SetClock(time) => {
            system::identity::tell_time(agent, time.wall_clock_ns)?;
            done()
        }
        Operation::MeasureSink(_) => Reply::Written(system::measure::sink(stream).await?),
        Operation::MeasureSource(request) => return system::measure::source(stream, request.bytes).await,
        Operation::MeasureSpawn(request) => Reply::Measured(system::measure::spawns(agent, request).await?),
    };
    stream.send_message(reply).await?;
    Ok(())
}

/// Looks the owner of what is to be written up; that reads files of the guest.
async fn owner(agent: &Arc<Agent>, specification: Option<&str>) -> AgentResult<Option<files::Owner>> {
    let Some(named) = specification else { return Ok(None) };
    let (agent, named) = (Arc::clone(agent), named.to_owned());
    files::blocking(move || files::Owner::resolve(&agent, &named)).await.map(Some)
}

pub(crate) fn done() -> Reply {
    Reply::Done(microvm_protocol::messages::Empty {})
}
