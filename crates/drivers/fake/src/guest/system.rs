//! The inside of a fake machine: files, processes, identity. It lives as long as its machine.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use microvm_ports::GuestError;
use microvm_ports::guest::{CloseReason, Identity};
use microvm_ports::hypervisor::MachineExit;
use microvm_types::exec::{ExecRequest, ExitStatus};
use microvm_types::files::{FileChange, FileOwner, WatchEvent};
use microvm_types::guest::NotStarted;
use microvm_types::{ErrorKind, ProcessId};
use sha2::{Digest, Sha256};
use tokio::sync::{broadcast, watch};
use tokio::task::JoinSet;

use crate::guest::disks::Disk;
use crate::guest::process::Process;
use crate::guest::programs::{self, Context, Ending};
use crate::guest::tree::{Body, Tree, node, refused, show};

/// Changes a watcher may be late by before it is told that it missed some.
const WATCH_BACKLOG: usize = 1024;

/// A running guest.
#[derive(Debug)]
pub(crate) struct GuestSystem {
    disk: Disk,
    pub(crate) booted: Instant,
    pub(crate) vcpus: u32,
    pub(crate) memory_mib: u32,
    inner: Mutex<Inner>,
    tasks: Mutex<JoinSet<()>>,
    next_pid: AtomicU32,
    next_id: AtomicU64,
    pub(crate) changes: broadcast::Sender<WatchEvent>,
    /// Set when the guest wants its machine to end.
    pub(crate) wants_end: watch::Sender<Option<MachineExit>>,
}

#[derive(Debug, Default)]
pub(crate) struct Inner {
    pub(crate) identity: Identity,
    pub(crate) processes: BTreeMap<ProcessId, Arc<Process>>,
    /// Restored processes that go on when the machine runs.
    pub(crate) asleep: Vec<Arc<Process>>,
    pub(crate) start_commands_done: bool,
    pub(crate) not_started: Option<NotStarted>,
    pub(crate) epoch: u64,
    /// State of the random number generator: a seed, and how many numbers were drawn since.
    pub(crate) random: ([u8; 32], u64),
    pub(crate) channel: Option<watch::Sender<Option<CloseReason>>>,
}

impl Inner {
    /// Becomes somebody else in a newer epoch.
    fn enter(&mut self, epoch: u64, identity: &Identity) -> Result<(), GuestError> {
        if epoch <= self.epoch {
            let message = format!("epoch {epoch} is not newer than {}", self.epoch);
            return Err(refused(ErrorKind::Conflict, message));
        }
        self.epoch = epoch;
        self.become_who(identity);
        Ok(())
    }

    /// Becomes who `identity` says; what was drawn before tells nothing of what comes.
    fn become_who(&mut self, identity: &Identity) {
        self.identity = Identity {
            start_commands: Vec::new(),
            shares: Vec::new(),
            volumes: Vec::new(),
            ..identity.clone()
        };
        let mixed = Sha256::new().chain_update(self.random.0).chain_update(identity.entropy);
        self.random = (mixed.finalize().into(), 0);
    }
}

impl GuestSystem {
    pub(crate) fn new(disk: Disk, vcpus: u32, memory_mib: u32) -> Self {
        // 1 is the agent.
        Self::with(Inner::default(), disk, (vcpus, memory_mib), Duration::ZERO, (2, 1))
    }

    /// A guest that has been up for a while.
    pub(crate) fn with(
        inner: Inner,
        disk: Disk,
        (vcpus, memory_mib): (u32, u32),
        uptime: Duration,
        (next_pid, next_id): (u32, u64),
    ) -> Self {
        let now = Instant::now();
        Self {
            disk,
            booted: now.checked_sub(uptime).unwrap_or(now),
            vcpus,
            memory_mib,
            inner: Mutex::new(inner),
            tasks: Mutex::default(),
            next_pid: AtomicU32::new(next_pid),
            next_id: AtomicU64::new(next_id),
            changes: broadcast::Sender::new(WATCH_BACKLOG),
            wants_end: watch::Sender::new(None),
        }
    }

    /// Numbers of the process that will be started next: in the guest, and ours.
    pub(crate) fn next_numbers(&self) -> (u32, u64) {
        (self.next_pid.load(Ordering::Relaxed), self.next_id.load(Ordering::Relaxed))
    }

    pub(crate) fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn files(&self) -> MutexGuard<'_, Tree> {
        self.disk.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn host_name(&self) -> String {
        self.inner().identity.host_name.clone()
    }

    pub(crate) fn start_commands_done(&self) -> bool {
        self.inner().start_commands_done
    }

    pub(crate) fn not_started(&self) -> Option<NotStarted> {
        self.inner().not_started.clone()
    }

    /// Tells watchers.
    pub(crate) fn changed(&self, path: &[u8], change: FileChange) {
        // Nobody listening is fine.
        let _ = self.changes.send(WatchEvent { path: show(path), path_bytes: None, change });
    }

    /// The guest is somebody else from now on.
    pub(crate) fn set_identity(&self, epoch: u64, identity: &Identity) -> Result<(), GuestError> {
        self.inner().enter(epoch, identity)?;
        self.write_machine_id(identity);
        Ok(())
    }

    /// User and group of an owner; the fake knows root and numbers.
    pub(crate) fn owner(&self, owner: Option<&FileOwner>) -> Result<Option<(u32, u32)>, GuestError> {
        let Some(owner) = owner else { return Ok(None) };
        let default = self.inner().identity.user.clone();
        let text = if *owner == FileOwner::Default { default.as_str() } else { owner.text() };
        let (user, group) = text.split_once(':').unwrap_or((text, "0"));
        let number = |name: &str| match name {
            "" | "root" => Ok(0),
            other => other
                .parse()
                .map_err(|_| refused(ErrorKind::NotFound, format!("{other}: no such user or group"))),
        };
        Ok(Some((number(user)?, number(group)?)))
    }

    fn write_machine_id(&self, identity: &Identity) {
        let content = Body::File(format!("{}\n", identity.machine_id).into_bytes());
        // A guest whose /etc was removed has none, as in life.
        let _ = self.files().put(&[b"etc".to_vec(), b"machine-id".to_vec()], node(content, 0o444));
    }

    /// A number that nobody has seen before, as `/proc/sys/kernel/random/uuid` shows it.
    pub(crate) fn random_uuid(&self) -> String {
        let mut inner = self.inner();
        inner.random.1 += 1;
        let drawn = Sha256::new().chain_update(inner.random.0).chain_update(inner.random.1.to_le_bytes());
        let hex: String = drawn.finalize().iter().take(16).map(|byte| format!("{byte:02x}")).collect();
        [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-")
    }

    /// Opens an epoch: an older channel ends, the identity is taken over, start commands are run.
    pub(crate) async fn open_epoch(
        self: &Arc<Self>,
        epoch: u64,
        identity: &Identity,
    ) -> Result<watch::Sender<Option<CloseReason>>, GuestError> {
        let channel = watch::Sender::new(None);
        {
            let mut inner = self.inner();
            inner.enter(epoch, identity)?;
            if let Some(older) = inner.channel.replace(channel.clone()) {
                close(&older, CloseReason::EndOfStream);
            }
        }
        self.write_machine_id(identity);
        let targets = identity.shares.iter().map(|share| &share.target);
        for target in targets.chain(identity.volumes.iter().map(|volume| &volume.target)) {
            self.files().make_directory(target.as_bytes(), 0o755, true, None)?;
        }
        let mut done = true;
        for (place, command) in identity.start_commands.iter().enumerate() {
            let request = ExecRequest {
                command: vec!["sh".to_owned(), "-c".to_owned(), command.clone()],
                detach: true,
                ..ExecRequest::default()
            };
            let process = match self.start_as(ProcessId::of_start_command(place), &request) {
                Ok(process) => process,
                Err(error) => {
                    self.inner().not_started = Some(NotStarted {
                        place: u32::try_from(place).unwrap_or(u32::MAX),
                        command: command.clone(),
                        command_omitted: 0,
                        reason: error.to_string(),
                    });
                    done = false;
                    break;
                }
            };
            done = process.ended().await.code == Some(0);
            if !done {
                break;
            }
        }
        // An adoption brings no commands and changes nothing about those of the boot.
        let mut inner = self.inner();
        inner.start_commands_done =
            if identity.start_commands.is_empty() && epoch > 1 { inner.start_commands_done } else { done };
        Ok(channel)
    }

    /// Ends the channel of the present epoch, if one is open.
    pub(crate) fn close_channel(&self, reason: CloseReason) {
        if let Some(channel) = self.inner().channel.take() {
            close(&channel, reason);
        }
    }

    /// Starts a process.
    pub(crate) fn start(self: &Arc<Self>, request: &ExecRequest) -> Result<Arc<Process>, GuestError> {
        let number = self.next_id.fetch_add(1, Ordering::Relaxed);
        self.start_as(ProcessId::from_parts(number, number), request)
    }

    fn start_as(self: &Arc<Self>, id: ProcessId, request: &ExecRequest) -> Result<Arc<Process>, GuestError> {
        let context = self.context(request)?;
        let pid = self.next_pid.fetch_add(1, Ordering::Relaxed);
        let process = Arc::new(Process::new(id.clone(), pid, request.clone(), context));
        self.inner().processes.insert(id, Arc::clone(&process));
        self.run(&process);
        Ok(process)
    }

    /// Lets restored processes go on.
    pub(crate) fn wake(self: &Arc<Self>) {
        let asleep = std::mem::take(&mut self.inner().asleep);
        for process in asleep {
            self.run(&process);
        }
    }

    fn run(self: &Arc<Self>, process: &Arc<Process>) {
        let timeout = process.request.timeout_ms.map(Duration::from_millis);
        let left = timeout.map(|timeout| timeout.saturating_sub(process.age()));
        let running = Arc::clone(process);
        // The system is held weakly: it owns this task, and must end with its machine.
        let system = Arc::downgrade(self);
        let task = async move {
            let Some(system) = system.upgrade() else { return };
            let code = |code: u8| ExitStatus { code: Some(code.into()), signal: None, timed_out: false };
            let killed = |signal, timed_out| ExitStatus { code: None, signal: Some(signal), timed_out };
            let (context, command) = (running.context.clone(), running.request.command.clone());
            let program = programs::run(&system, &running, context, command);
            let exit = tokio::select! {
                ending = program => match ending {
                    Ending::Code(value) => code(value),
                    Ending::Signal(signal) => killed(signal, false),
                },
                signal = running.signalled() => killed(signal, false),
                () = sleep_or_never(left) => killed(9, true),
            };
            running.end(exit);
        };
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        // Those that have ended are let go of: the set would grow with every process.
        while tasks.try_join_next().is_some() {}
        tasks.spawn(task);
    }

    fn context(&self, request: &ExecRequest) -> Result<Context, GuestError> {
        let Some(program) = request.command.first() else {
            return Err(refused(ErrorKind::Invalid, "the command is empty"));
        };
        if !programs::exists(program) {
            return Err(refused(ErrorKind::NotFound, format!("{program}: no such program")));
        }
        let identity = self.inner().identity.clone();
        let user = request.user.clone().unwrap_or(identity.user);
        let (uid, home) = match user.split(':').next().unwrap_or_default() {
            "" | "root" | "0" => (0, "/root"),
            "nobody" => (65534, "/"),
            other => match other.parse() {
                Ok(uid) => (uid, "/"),
                Err(_) => return Err(refused(ErrorKind::NotFound, format!("{other}: no such user"))),
            },
        };
        let directory = request.working_directory.clone().unwrap_or(identity.working_directory);
        let directory = match directory.as_str() {
            "" => home.to_owned(),
            path if path.starts_with('/') => path.to_owned(),
            path => format!("{home}/{path}"),
        };
        self.files().list(directory.as_bytes(), 0)?;
        let mut environment = BTreeMap::from([
            ("PATH".to_owned(), "/usr/bin:/bin".to_owned()),
            ("HOME".to_owned(), home.to_owned()),
        ]);
        environment.extend(identity.environment);
        environment.extend(request.environment.clone());
        Ok(Context { environment, directory, uid, nested: false })
    }

    pub(crate) fn process(&self, id: &ProcessId) -> Result<Arc<Process>, GuestError> {
        let unknown = || refused(ErrorKind::NotFound, format!("no process has the id {id}"));
        self.inner().processes.get(id).cloned().ok_or_else(unknown)
    }

    pub(crate) fn processes(&self) -> Vec<Arc<Process>> {
        self.inner().processes.values().cloned().collect()
    }

    /// Everything stops, as when the machine is switched off.
    pub(crate) fn halt(&self, reason: CloseReason) {
        self.close_channel(reason);
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner).abort_all();
    }
}

/// Waits for the end of a channel.
pub(crate) async fn wait_closed(closed: &mut watch::Receiver<Option<CloseReason>>) -> CloseReason {
    let reason = closed.wait_for(Option::is_some).await.ok().and_then(|reason| reason.clone());
    reason.unwrap_or(CloseReason::Local)
}

/// Ends a channel; the first reason stays.
pub(crate) fn close(channel: &watch::Sender<Option<CloseReason>>, reason: CloseReason) {
    channel.send_if_modified(|closed| {
        let first = closed.is_none();
        if first {
            *closed = Some(reason);
        }
        first
    });
}

async fn sleep_or_never(duration: Option<Duration>) {
    match duration {
        Some(duration) => tokio::time::sleep(duration).await,
        None => std::future::pending().await,
    }
}
