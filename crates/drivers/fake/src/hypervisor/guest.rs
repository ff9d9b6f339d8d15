//! One channel to a fake guest.

use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;
use futures::{Stream, StreamExt, stream};
use microvm_ports::branch::InputProbe;
use microvm_ports::content::{self, Content, ContentStream};
use microvm_ports::guest::{
    ByteStream, CloseReason, Guest, GuestArchives, GuestExec, GuestFiles, GuestInfo, GuestMeasure, GuestPath,
    GuestPorts, GuestPower, Identity, PortConnection, ProcessEvent, ProcessEvents, ProcessHandle,
    ProcessInput, ProcessWriter,
};
use microvm_ports::hypervisor::{Machine, MachineExit, MachineState};
use microvm_ports::{GuestError, Holes, PulledArchive, PushedArchive};
use microvm_types::exec::{ExecRequest, OutputOffsets, ProcessInfo};
use microvm_types::files::{FileChange, FileList, FileOwner, FileStat, LeftOut, WatchEvent, WriteOptions};
use microvm_types::guest::{AgentInfo, GuestHealth, GuestProcess, ShutdownMode, SystemInfo};
use microvm_types::{ErrorKind, ProcessId};
use sha2::{Digest, Sha256};
use tokio::sync::{broadcast, watch};

use crate::guest::closed::wait_closed;
use crate::guest::process::{Next, Process, Side};
use crate::guest::system::{GuestSystem, close};
use crate::guest::tree::{Body, Modified, Node, node, refused};
use crate::guest::{archive, echo, tree};
use crate::hypervisor::machine::FakeMachine;
use crate::script::{Operation, Script, Verdict};

/// Bytes of a file or archive per chunk of a stream.
const CHUNK: usize = 64 << 10;

/// Most bytes of one transfer: all of it is held in memory here.
const MAX_TRANSFER: usize = 512 << 20;

/// A guest of a [`FakeMachine`].
#[derive(Debug)]
pub struct FakeGuest {
    agent: AgentInfo,
    machine: Arc<FakeMachine>,
    channel: watch::Sender<Option<CloseReason>>,
    script: Script,
}

impl FakeGuest {
    pub(crate) const fn new(
        agent: AgentInfo,
        machine: Arc<FakeMachine>,
        channel: watch::Sender<Option<CloseReason>>,
        script: Script,
    ) -> Self {
        Self { agent, machine, channel, script }
    }

    /// Waits until the machine runs; ends when the channel does.
    async fn system(&self) -> Result<&Arc<GuestSystem>, GuestError> {
        let mut closed = self.channel.subscribe();
        let mut state = self.machine.state();
        tokio::select! {
            biased;
            reason = wait_closed(&mut closed) => Err(GuestError::Closed(reason)),
            _ = state.wait_for(|state| *state == MachineState::Running) => Ok(&self.machine.system),
        }
    }

    async fn ask(&self, operation: Operation) -> Result<Verdict, GuestError> {
        match self.script.ask(operation).await {
            Verdict::Fail => Err(refused(ErrorKind::Internal, "a fault was planned here")),
            go => Ok(go),
        }
    }

    fn handle(&self, process: &Arc<Process>, from: OutputOffsets) -> ProcessHandle {
        let (reader, stdout_offset, stderr_offset) = process.take_over(from.stdout, from.stderr);
        ProcessHandle {
            id: process.id.clone(),
            pid: process.pid,
            stdout_offset,
            stderr_offset,
            events: events(
                Arc::clone(process),
                self.channel.subscribe(),
                Reader::Takes(reader),
                stdout_offset,
                stderr_offset,
            ),
            input: Arc::new(Writer { process: Arc::clone(process), closed: self.channel.subscribe() }),
        }
    }
}

/// Reader of the output.
#[derive(Debug, Clone, Copy)]
enum Reader {
    /// The one with this number, as long as there is no later one.
    Takes(u64),
    /// One of any number beside that.
    Looks { follow: bool },
}

fn events(
    process: Arc<Process>,
    closed: watch::Receiver<Option<CloseReason>>,
    reader: Reader,
    stdout: u64,
    stderr: u64,
) -> ProcessEvents {
    let start = Some((process, closed, stdout, stderr));
    Box::pin(stream::unfold(start, move |state| async move {
        let (process, mut closed, mut stdout, mut stderr) = state?;
        let next = tokio::select! {
            biased;
            next = async {
                match reader {
                    Reader::Takes(number) => process.next(number, stdout, stderr).await,
                    Reader::Looks { follow } => process.seen(stdout, stderr, follow).await,
                }
            } => next,
            reason = wait_closed(&mut closed) => {
                return Some((ProcessEvent::Lost(GuestError::Closed(reason)), None));
            }
        };
        match next {
            Next::Data(side, offset, data) => {
                let end = offset + data.len() as u64;
                let event = match side {
                    Side::Stdout => {
                        stdout = end;
                        ProcessEvent::Stdout(data)
                    }
                    Side::Stderr => {
                        stderr = end;
                        ProcessEvent::Stderr(data)
                    }
                };
                Some((event, Some((process, closed, stdout, stderr))))
            }
            Next::Exited(exit) => Some((ProcessEvent::Exited(exit), None)),
            Next::Superseded => None,
            Next::UpToDate => Some((ProcessEvent::UpToDate, None)),
        }
    }))
}

struct Writer {
    process: Arc<Process>,
    closed: watch::Receiver<Option<CloseReason>>,
}

#[async_trait]
impl ProcessWriter for Writer {
    async fn send(&self, input: ProcessInput) -> Result<(), GuestError> {
        let mut closed = self.closed.clone();
        let present = closed.borrow().clone();
        if let Some(reason) = present {
            return Err(GuestError::Closed(reason));
        }
        match input {
            ProcessInput::Stdin(data) => tokio::select! {
                () = self.process.feed(data) => {}
                reason = wait_closed(&mut closed) => return Err(GuestError::Closed(reason)),
            },
            ProcessInput::CloseStdin => self.process.close_input(),
            ProcessInput::Resize(size) => self.process.resize(size),
            ProcessInput::Signal(signal) => self.process.signal(check_signal(signal)?),
        }
        Ok(())
    }
}

fn check_signal(signal: u8) -> Result<u8, GuestError> {
    if (1..=64).contains(&signal) {
        Ok(signal)
    } else {
        Err(refused(ErrorKind::Invalid, format!("{signal} is not a signal")))
    }
}

/// An archive from which nothing was left out.
fn whole(packed: Vec<u8>) -> PulledArchive {
    let (report, left_out) = tokio::sync::oneshot::channel();
    // The other end is in the answer.
    let _ = report.send(LeftOut::default());
    PulledArchive { data: chunks(packed), left_out }
}

fn chunks(data: Vec<u8>) -> ByteStream {
    let data = Bytes::from(data);
    let pieces: Vec<Bytes> =
        (0..data.len()).step_by(CHUNK).map(|at| data.slice(at..data.len().min(at + CHUNK))).collect();
    Box::pin(stream::iter(pieces.into_iter().map(Ok)))
}

/// Content as a file system tells it: whole chunks of zeros are holes.
fn with_holes(data: &[u8]) -> ContentStream {
    let pieces: Vec<Content> = data
        .chunks(CHUNK)
        .map(|chunk| match chunk.iter().all(|byte| *byte == 0) {
            true => Content::Hole(chunk.len() as u64),
            false => Content::Data(Bytes::copy_from_slice(chunk)),
        })
        .collect();
    Box::pin(stream::iter(pieces.into_iter().map(Ok)))
}

fn hex(hash: Sha256) -> String {
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

async fn gather(mut data: ByteStream) -> Result<Vec<u8>, GuestError> {
    let mut all = Vec::new();
    while let Some(piece) = data.next().await {
        let piece = piece.map_err(|error| match error {
            GuestError::Source(detail) => GuestError::Source(detail),
            other => GuestError::Source(other.to_string()),
        })?;
        if all.len() + piece.len() > MAX_TRANSFER {
            return Err(refused(ErrorKind::Exhausted, "no space left on the fake guest"));
        }
        all.extend_from_slice(&piece);
    }
    Ok(all)
}

fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

fn now() -> Modified {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    (i64::try_from(since.as_secs()).unwrap_or(i64::MAX), since.subsec_nanos())
}

#[async_trait]
impl Guest for FakeGuest {
    fn agent(&self) -> &AgentInfo {
        &self.agent
    }

    fn closed(&self) -> watch::Receiver<Option<CloseReason>> {
        self.channel.subscribe()
    }

    fn close(&self) {
        close(&self.channel, CloseReason::Local);
    }

    async fn ping(&self) -> Result<Duration, GuestError> {
        let begun = Instant::now();
        let verdict = self.ask(Operation::Ping).await?;
        self.system().await?;
        verdict.finish().await;
        Ok(begun.elapsed())
    }

    fn measuring(&self) -> Option<&dyn GuestMeasure> {
        Some(self)
    }
}

#[async_trait]
impl GuestPower for FakeGuest {
    async fn identify(&self, epoch: u64, identity: &Identity) -> Result<(), GuestError> {
        let verdict = self.ask(Operation::Identify).await?;
        self.system().await?.set_identity(epoch, identity)?;
        verdict.finish().await;
        Ok(())
    }

    async fn tell_time(&self) -> Result<(), GuestError> {
        let verdict = self.ask(Operation::TellTime).await?;
        self.system().await?;
        verdict.finish().await;
        Ok(())
    }

    fn expect_heartbeats(&self, _expected: bool) {}

    async fn hold_input(&self) -> InputProbe {
        Box::new(|| 0)
    }

    async fn shutdown(&self, mode: ShutdownMode, _grace: Duration) -> Result<(), GuestError> {
        let verdict = self.ask(Operation::Shutdown).await?;
        let system = self.system().await?;
        for process in system.processes() {
            process.signal(15);
        }
        system.wants_end.send_replace(Some(match mode {
            ShutdownMode::PowerOff => MachineExit::GuestShutdown,
            ShutdownMode::Reboot => MachineExit::GuestReset,
        }));
        verdict.finish().await;
        Ok(())
    }
}

#[async_trait]
impl GuestExec for FakeGuest {
    async fn exec(&self, request: &ExecRequest) -> Result<ProcessHandle, GuestError> {
        let verdict = self.ask(Operation::Exec).await?;
        let process = self.system().await?.start(request)?;
        verdict.finish().await;
        Ok(self.handle(&process, OutputOffsets { stdout: Some(0), stderr: Some(0) }))
    }

    async fn attach(&self, process: &ProcessId, from: OutputOffsets) -> Result<ProcessHandle, GuestError> {
        let process = self.system().await?.process(process)?;
        Ok(self.handle(&process, from))
    }

    async fn read_output(
        &self,
        process: &ProcessId,
        from: OutputOffsets,
        follow: bool,
    ) -> Result<ProcessHandle, GuestError> {
        let process = self.system().await?.process(process)?;
        let (stdout_offset, stderr_offset) = process.look(from.stdout, from.stderr);
        let (closed, reader) = (self.channel.subscribe(), Reader::Looks { follow });
        Ok(ProcessHandle {
            id: process.id.clone(),
            pid: process.pid,
            stdout_offset,
            stderr_offset,
            events: events(Arc::clone(&process), closed, reader, stdout_offset, stderr_offset),
            input: Arc::new(Writer { process, closed: self.channel.subscribe() }),
        })
    }

    async fn processes(&self) -> Result<Vec<ProcessInfo>, GuestError> {
        let verdict = self.ask(Operation::Processes).await?;
        let processes = self.system().await?.processes();
        verdict.finish().await;
        let listed =
            processes.iter().filter(|process| !(process.request.unlisted && process.exit().is_some()));
        Ok(listed.map(|process| process.info()).collect())
    }

    async fn signal(&self, process: &ProcessId, signal: u8) -> Result<(), GuestError> {
        let signal = check_signal(signal)?;
        self.system().await?.process(process)?.signal(signal);
        Ok(())
    }
}

#[async_trait]
impl GuestFiles for FakeGuest {
    async fn read_file(
        &self,
        path: &GuestPath,
        offset: u64,
        length: Option<u64>,
    ) -> Result<(FileStat, ContentStream), GuestError> {
        let files = self.system().await?.files();
        let (stat, data) = files.read(path)?;
        let start = usize::try_from(offset).unwrap_or(usize::MAX).min(data.len());
        let length = length.map_or(usize::MAX, |length| usize::try_from(length).unwrap_or(usize::MAX));
        let data = &data[start..start.saturating_add(length).min(data.len())];
        Ok((stat, with_holes(data)))
    }

    async fn write_file(
        &self,
        path: &GuestPath,
        options: &WriteOptions,
        data: ContentStream,
    ) -> Result<u64, GuestError> {
        let system = self.system().await?;
        // Found out before anything is transferred, as a real agent does.
        check_place(system, path, options.create_parents)?;
        let content = gather(content::expanded(data)).await?;
        let bytes = content.len() as u64;
        let owner = system.owner(options.owner.as_ref())?;
        {
            let mut files = system.files();
            let parts = files.resolve(path, true)?;
            if options.create_parents {
                files.make_all(&parts[..parts.len().saturating_sub(1)], 0o755, owner)?;
            }
            let old = files.get(&parts).ok().map(|old| (old.mode, old.owner));
            let named = owner.filter(|_| options.owner != Some(FileOwner::Default));
            let new_owner = named.or(old.map(|(_, owner)| owner)).or(owner).unwrap_or((0, 0));
            let old_mode = old.map_or(0o644, |(mode, _)| mode);
            files.put(
                &parts,
                Node {
                    owner: new_owner,
                    modified: options.modified.map_or_else(now, |time| (time.seconds(), time.nanoseconds())),
                    ..node(Body::File(content), options.mode.unwrap_or(old_mode))
                },
            )?;
        }
        system.changed(path, FileChange::Modified);
        Ok(bytes)
    }

    async fn stat(&self, path: &GuestPath) -> Result<FileStat, GuestError> {
        self.system().await?.files().stat(path)
    }

    async fn list(&self, path: &GuestPath, depth: u32) -> Result<FileList, GuestError> {
        let entries = self.system().await?.files().list(path, depth)?;
        Ok(FileList { entries, ..FileList::default() })
    }

    async fn make_directory(
        &self,
        path: &GuestPath,
        mode: u32,
        parents: bool,
        owner: Option<&FileOwner>,
    ) -> Result<(), GuestError> {
        let system = self.system().await?;
        let owner = system.owner(owner)?;
        system.files().make_directory(path, mode, parents, owner)?;
        system.changed(path, FileChange::Created);
        Ok(())
    }

    async fn rename(&self, from: &GuestPath, to: &GuestPath) -> Result<(), GuestError> {
        let system = self.system().await?;
        system.files().rename(from, to)?;
        system.changed(from, FileChange::Renamed);
        system.changed(to, FileChange::Created);
        Ok(())
    }

    async fn remove(&self, path: &GuestPath, recursive: bool) -> Result<(), GuestError> {
        let system = self.system().await?;
        system.files().remove(path, recursive)?;
        system.changed(path, FileChange::Removed);
        Ok(())
    }

    async fn watch(
        &self,
        path: &GuestPath,
        recursive: bool,
    ) -> Result<Pin<Box<dyn Stream<Item = Result<WatchEvent, GuestError>> + Send>>, GuestError> {
        let system = self.system().await?;
        system.files().stat(path)?;
        let base = tree::show(path).trim_end_matches('/').to_owned();
        let state = Some((system.changes.subscribe(), self.channel.subscribe(), base));
        Ok(Box::pin(stream::unfold(state, move |state| async move {
            let (mut changes, mut closed, base) = state?;
            loop {
                let change = tokio::select! {
                    change = changes.recv() => change,
                    reason = wait_closed(&mut closed) => return Some((Err(GuestError::Closed(reason)), None)),
                };
                let event = match change {
                    Ok(event) => event,
                    Err(broadcast::error::RecvError::Lagged(_)) => {
                        WatchEvent { path: base.clone(), path_bytes: None, change: FileChange::Overflow }
                    }
                    Err(broadcast::error::RecvError::Closed) => return None,
                };
                let inside = match event.path.strip_prefix(&base) {
                    Some("") => true,
                    Some(rest) => rest.starts_with('/') && (recursive || !rest[1..].contains('/')),
                    None => false,
                };
                if inside {
                    return Some((Ok(event), Some((changes, closed, base))));
                }
            }
        })))
    }
}

#[async_trait]
impl GuestArchives for FakeGuest {
    async fn push_archive(
        &self,
        path: &GuestPath,
        owner: Option<&FileOwner>,
        data: ByteStream,
    ) -> Result<PushedArchive, GuestError> {
        let system = self.system().await?;
        let owner = system.owner(owner)?;
        let content = gather(data).await?;
        let left_out = archive::unpack(&mut system.files(), path, owner, &content)?;
        system.changed(path, FileChange::Modified);
        Ok(PushedArchive { bytes: content.len() as u64, left_out })
    }

    async fn pull_archive(
        &self,
        path: &GuestPath,
        exclude: &[Vec<u8>],
        // Its files have none, as far as it tells.
        _holes: Holes,
    ) -> Result<PulledArchive, GuestError> {
        Ok(whole(archive::pack(&self.system().await?.files(), path, exclude)?))
    }

    async fn pull_root(&self, path: &GuestPath) -> Result<PulledArchive, GuestError> {
        Ok(whole(archive::pack_root(&self.system().await?.files(), path)?))
    }

    async fn pull_layer(&self) -> Result<PulledArchive, GuestError> {
        // Its root has no image below: all of it differs.
        self.pull_root(b"/").await
    }

    async fn hash_file(&self, path: &GuestPath) -> Result<String, GuestError> {
        let files = self.system().await?.files();
        Ok(hex(Sha256::new_with_prefix(files.read(path)?.1)))
    }
}

#[async_trait]
impl GuestPorts for FakeGuest {
    async fn connect_port(&self, port: u16) -> Result<PortConnection, GuestError> {
        self.system().await?;
        if port != echo::ECHO_PORT {
            let reason = format!("nothing listens on port {port} of the fake guest");
            return Err(refused(ErrorKind::Unavailable, reason));
        }
        Ok(echo::connect(self.channel.subscribe()))
    }
}

#[async_trait]
impl GuestInfo for FakeGuest {
    async fn system_info(&self) -> Result<SystemInfo, GuestError> {
        let system = self.system().await?;
        let memory_total = u64::from(system.memory_mib) << 20;
        Ok(SystemInfo {
            operating_system: "Fake".to_owned(),
            kernel_release: self.agent.kernel_release.clone(),
            host_name: system.host_name(),
            architecture: std::env::consts::ARCH.to_owned(),
            vcpus: system.vcpus,
            memory_total,
            memory_available: memory_total / 2,
            disk_total: 1 << 30,
            disk_available: 1 << 29,
            uptime_seconds: system.booted.elapsed().as_secs(),
            load_average: [0.0; 3],
            wall_clock_ms: now_ms(),
        })
    }

    async fn guest_processes(&self) -> Result<Vec<GuestProcess>, GuestError> {
        let process = |pid, parent, command| GuestProcess {
            command_omitted: 0,
            pid,
            parent,
            uid: 0,
            state: 'S',
            resident_bytes: 1 << 20,
            cpu_ms: 0,
            command,
        };
        let system = self.system().await?;
        let living = system.processes().into_iter().filter(|process| process.exit().is_none());
        let agent = process(1, 0, "microvm-agent".to_owned());
        Ok(std::iter::once(agent)
            .chain(living.map(|p| process(p.pid, 1, p.request.command.join(" "))))
            .collect())
    }

    async fn health(&self) -> Result<GuestHealth, GuestError> {
        let start_commands_done = self.system().await?.start_commands_done();
        Ok(GuestHealth { cpu_percent: 0.0, memory_percent: 50.0, disk_percent: 50.0, start_commands_done })
    }
}

#[async_trait]
impl GuestMeasure for FakeGuest {
    async fn measure_channel(
        &self,
        _to_guest: u64,
        _from_guest: u64,
    ) -> Result<(Duration, Duration), GuestError> {
        self.system().await?;
        // No bytes move between two parts of one memory; the least that can be told apart from nothing.
        Ok((Duration::from_nanos(1), Duration::from_nanos(1)))
    }

    async fn measure_spawn(&self, program: &str, rounds: u32) -> Result<Vec<Duration>, GuestError> {
        let system = self.system().await?;
        let request = ExecRequest { command: vec![program.to_owned()], ..ExecRequest::default() };
        let mut times = Vec::new();
        for _ in 0..rounds.min(100_000) {
            let begun = Instant::now();
            system.start(&request)?.ended().await;
            times.push(begun.elapsed());
        }
        Ok(times)
    }
}

fn check_place(system: &GuestSystem, path: &GuestPath, create_parents: bool) -> Result<(), GuestError> {
    let files = system.files();
    let parts = files.resolve(path, true)?;
    if matches!(files.get(&parts), Ok(Node { body: Body::Directory(_), .. })) {
        return Err(refused(ErrorKind::Conflict, format!("{}: it is a directory", tree::show(path))));
    }
    if !create_parents {
        files.get(&parts[..parts.len().saturating_sub(1)])?;
    }
    Ok(())
}
