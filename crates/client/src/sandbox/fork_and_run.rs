//! One command in each of many children of a VM.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::pin::pin;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use futures_util::future::join_all;
use microvm_api::Vm;
use microvm_api::snapshot::ForkVm;
use microvm_types::exec::{ExecRequest, ExitStatus};
use microvm_types::files::FileOwner;
use microvm_types::{ProcessId, VmRef};

use crate::client::Client;
use crate::copy::Moved;
use crate::error::ClientError;
use crate::sandbox::collect::CollectedOutput;
use crate::sandbox::end_requests::{EndRequests, GRACE};
use crate::sandbox::leftover::{IDLE_NET, Leftover, delete, temporary};
use crate::sandbox::workspace::Workspace;

/// Placeholder for the number of a child in its command, variables and working directory, as in its name.
const NUMBER: &str = "{n}";

/// One command for each child of a VM.
#[derive(Debug, Clone, Default)]
pub struct ForkAndRun {
    /// Commands, one for each child; [`numbered`] puts the number of the child into one.
    pub commands: Vec<ExecRequest>,
    /// Names of the children; `{n}` stands for the number from 1. The server makes them up if absent.
    pub name: Option<String>,
    /// Labels of the children, on top of those of their parent.
    pub labels: BTreeMap<String, String>,
    /// Directory of this host for what the commands leave in `/workspace/output`: subdirectory `1` for the first child, and
    /// so on. Nothing is fetched if absent.
    pub output: Option<PathBuf>,
    /// Commands at once, at most; absent: all.
    pub at_once: Option<NonZeroUsize>,
    /// True: children stay. Otherwise each is deleted when its command has ended.
    pub keep: bool,
}

/// Failure of the command of one child.
#[derive(Debug, thiserror::Error)]
pub enum CommandFailure {
    /// Its output directory could not be made.
    #[error(transparent)]
    Prepare(ClientError),
    /// It could not be started.
    #[error(transparent)]
    Start(ClientError),
    /// It was started, and its end is unknown.
    #[error(transparent)]
    Lost(ClientError),
}

/// The command of one child.
#[derive(Debug)]
pub struct ChildRun {
    /// Number of the child, from 1.
    pub number: usize,
    /// The child as it was forked.
    pub vm: Vm,
    /// Time from its turn to the end of the command, in milliseconds.
    pub duration_ms: u64,
    /// Status of the command.
    pub ended: Result<ExitStatus, CommandFailure>,
    /// Both outputs; empty if it failed.
    pub output: CollectedOutput,
    /// Outcome of fetching the output directory; `None` if that was not asked for or there was nothing to fetch.
    pub fetched: Option<Result<Moved, ClientError>>,
}

/// All commands of a [`ForkAndRun`].
#[derive(Debug, Default)]
pub struct ForkedRun {
    /// The children by number; after an early end those whose commands had ended.
    pub children: Vec<ChildRun>,
    /// Request that ended it early, as [`EndRequests::next`] returned it.
    pub ended_by: Option<u8>,
    /// Children that could not be deleted; usually empty.
    pub leftovers: Vec<Leftover>,
}

/// A command under way in a child.
type Command = (VmRef, ProcessId);

/// Commands that were started, and the request that ends them.
#[derive(Default)]
struct Begun(Mutex<Commands>);

#[derive(Default)]
struct Commands {
    started: Vec<Command>,
    /// Signal of the request, once it came.
    ending: Option<u8>,
}

impl Begun {
    fn lock(&self) -> MutexGuard<'_, Commands> {
        // A list of finished entries is whole at any time.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes a command that was started; returns the signal that it has missed.
    fn started(&self, command: Command) -> Option<u8> {
        let mut commands = self.lock();
        commands.started.push(command);
        commands.ending
    }

    /// Notes the request to end; returns the commands that have to be told. Others are told when they are noted.
    fn end(&self, signal: u8) -> Vec<Command> {
        let mut commands = self.lock();
        commands.ending = Some(signal);
        commands.started.clone()
    }

    fn is_ending(&self) -> bool {
        self.lock().ending.is_some()
    }
}

/// Children whose commands have ended, with what is left of each that could not be deleted.
#[derive(Default)]
struct Ended(Mutex<Vec<(ChildRun, Option<Leftover>)>>);

impl Ended {
    fn list(&self) -> MutexGuard<'_, Vec<(ChildRun, Option<Leftover>)>> {
        // As of those begun.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self) -> (Vec<ChildRun>, Vec<Leftover>) {
        let (runs, leftovers): (Vec<_>, Vec<_>) = std::mem::take(&mut *self.list()).into_iter().unzip();
        (runs, leftovers.into_iter().flatten().collect())
    }
}

/// A request with the number of a child in the place of each `{n}` in its command, values of variables and working directory.
#[must_use]
pub fn numbered(request: &ExecRequest, number: usize) -> ExecRequest {
    let numbered = |text: &String| text.replace(NUMBER, &number.to_string());
    ExecRequest {
        command: request.command.iter().map(numbered).collect(),
        environment: request.environment.iter().map(|(key, value)| (key.clone(), numbered(value))).collect(),
        working_directory: request.working_directory.as_ref().map(numbered),
        ..request.clone()
    }
}

impl ForkAndRun {
    /// Forks a VM into one child for each command.
    ///
    /// # Errors
    /// See [`ClientError`]; no child is left then.
    pub async fn fork(&self, client: &Client, vm: &VmRef) -> Result<Vec<Vm>, ClientError> {
        let mut request = ForkVm {
            count: self.commands.len(),
            name: self.name.clone(),
            labels: self.labels.clone(),
            ..ForkVm::default()
        };
        if !self.keep {
            request.limits = temporary();
        }
        Ok(client.fork_vm(vm, &request).await?.vms)
    }

    /// Runs the commands in the children that [`Self::fork`] returned. A request to end is sent to all commands under way as
    /// a signal; they have [`GRACE`] to exit, then the children are deleted unless they are kept. Children without a command
    /// are deleted, too.
    pub async fn run(
        &self,
        client: &Client,
        mut children: Vec<Vm>,
        requests: &mut impl EndRequests,
    ) -> ForkedRun {
        // Known beside the running commands: whoever passes a signal on must not wait for them.
        let (begun, ended) = (Begun::default(), Ended::default());
        // The server makes as many children as there are commands; more would have nothing to do.
        let surplus = children.split_off(children.len().min(self.commands.len()));
        let mut left: Vec<_> = children.iter().chain(&surplus).map(|vm| vm.id.clone()).collect();
        let ids: Vec<_> = children.iter().map(|vm| vm.id.clone()).collect();
        let ended_by = {
            let mut running = pin!(self.in_children(client, children, &begun, &ended));
            tokio::select! {
                () = &mut running => None,
                never = keep_awake(client, ids.iter().cloned().map(VmRef::from).collect(), &begun) => match never {},
                signal = requests.next() => {
                    give_time(client, &begun, signal, &mut running, requests).await;
                    Some(signal)
                }
            }
        };
        let (mut children, mut leftovers) = ended.take();
        // They end in any order; whoever reads them counts from 1.
        children.sort_by_key(|run| run.number);
        // Those that ended were deleted then.
        left.retain(|id| !self.keep && !children.iter().any(|run| run.vm.id == *id));
        for id in &left {
            leftovers.extend(delete(client, id).await);
        }
        ForkedRun { children, ended_by, leftovers }
    }

    /// Runs the commands, at most so many at once; each child is deleted as soon as its command has ended.
    async fn in_children(&self, client: &Client, children: Vec<Vm>, begun: &Begun, ended: &Ended) {
        let at_once = self.at_once.map_or(children.len(), NonZeroUsize::get).max(1);
        let pairs = children.into_iter().zip(&self.commands).enumerate();
        let running = pairs.map(|(index, (vm, request))| async move {
            // A child whose turn has not come when the end is asked for gets no command.
            if begun.is_ending() {
                return;
            }
            let run = self.in_child(client, index + 1, vm, request, begun).await;
            let leftover = if self.keep { None } else { delete(client, &run.vm.id).await };
            ended.list().push((run, leftover));
        });
        futures_util::stream::iter(running).buffer_unordered(at_once).collect().await
    }

    async fn in_child(
        &self,
        client: &Client,
        number: usize,
        vm: Vm,
        request: &ExecRequest,
        begun: &Begun,
    ) -> ChildRun {
        let began = Instant::now();
        let ended = self.command(client, &VmRef::from(vm.id.clone()), request, begun).await;
        let duration_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
        // Also after a command that failed: what it left may say why.
        let fetched = match &self.output {
            Some(folder) if ended.is_ok() => {
                Some(Workspace::fetch(client, &vm, &folder.join(number.to_string()), None).await)
            }
            _ => None,
        };
        let (ended, output) = match ended {
            Ok((status, output)) => (Ok(status), output),
            Err(failure) => (Err(failure), CollectedOutput::default()),
        };
        ChildRun { number, vm, duration_ms, ended, output, fetched }
    }

    async fn command(
        &self,
        client: &Client,
        vm: &VmRef,
        request: &ExecRequest,
        begun: &Begun,
    ) -> Result<(ExitStatus, CollectedOutput), CommandFailure> {
        if self.output.is_some() {
            let workspace = Workspace { owner: FileOwner::Default };
            workspace.prepare_output(client, vm).await.map_err(CommandFailure::Prepare)?;
        }
        let session = client.exec(vm, request).await.map_err(CommandFailure::Start)?;
        let process = session.started.process.clone();
        if let Some(signal) = begun.started((vm.clone(), process.clone())) {
            // It was being started when the request came. One that has ended needs no signal.
            let _ = client.signal(vm, &process, signal).await;
        }
        session.collect().await.map_err(CommandFailure::Lost)
    }
}

/// Uses the children whose turn has not come, so that their idle limit does not delete them.
async fn keep_awake(client: &Client, children: Vec<VmRef>, begun: &Begun) -> Infallible {
    loop {
        // A fifth of the limit: one late or failed round does no harm.
        tokio::time::sleep(Duration::from_secs(IDLE_NET / 5)).await;
        let busy: Vec<VmRef> = begun.lock().started.iter().map(|(vm, _)| vm.clone()).collect();
        let waiting = children.iter().filter(|vm| !busy.contains(vm));
        // A failure is reported when the command of that child is started.
        let _ = join_all(waiting.map(|vm| client.ping(vm))).await;
    }
}

/// Passes a signal on to the commands of all children and gives them time to exit by themselves.
async fn give_time(
    client: &Client,
    begun: &Begun,
    signal: u8,
    running: impl Future,
    requests: &mut impl EndRequests,
) {
    let commands = begun.end(signal);
    let passing = commands.iter().map(|(vm, process)| client.signal(vm, process, signal));
    let ended = async {
        // One that has ended needs no signal.
        let _ = join_all(passing).await;
        running.await;
    };
    tokio::select! {
        () = ended => {}
        // Those that go on are ended with their VMs.
        () = tokio::time::sleep(GRACE) => {}
        _ = requests.next() => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_stands_wherever_its_placeholder_does() {
        let text = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
        let request = ExecRequest {
            command: text(&["try", "{n}-{n}"]),
            environment: [("N{n}".to_owned(), "seed {n}".to_owned())].into(),
            working_directory: Some("/data/{n}".to_owned()),
            user: Some("u{n}".to_owned()),
            ..ExecRequest::default()
        };
        let third = numbered(&request, 3);
        assert_eq!(third.command, text(&["try", "3-3"]));
        assert_eq!(third.environment, [("N{n}".to_owned(), "seed 3".to_owned())].into());
        assert_eq!(third.working_directory.as_deref(), Some("/data/3"));
        assert_eq!(third.user.as_deref(), Some("u{n}"));
    }
}
