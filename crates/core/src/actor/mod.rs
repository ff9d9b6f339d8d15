//! One task per VM: owns its record and its machine, does one command after the other.

mod adopt;
mod branching;
mod claim;
mod limits;
mod record;
mod removal;
mod rest;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use microvm_ports::hypervisor::MachineExit;
use microvm_ports::snapshot::BranchSource;
use microvm_ports::{Guest, GuestError, Machine};
use microvm_types::lifecycle::{Admission, LifecycleEvent, admit};
use microvm_types::template::HookPoint;
use microvm_types::vm::VmRecord;
use microvm_types::{Phase, guest::ShutdownMode};
use tokio::sync::{mpsc, oneshot, watch};

pub(crate) use self::branching::{ForkPoint, SnapshotOrder, Written, check_branchable};
pub(crate) use self::claim::Claim;
use crate::activity::Activity;
use crate::error::ServiceError;
use crate::hooks;
use crate::service::Shared;
use crate::start::{self, BroughtUp, bring_up};
use crate::view::Snapshot;
use crate::waiting::WaitingVmms;

pub(crate) type Reply = oneshot::Sender<Result<(), ServiceError>>;

/// What can be asked of a VM.
pub(crate) enum Command {
    /// `cold`: one that sleeps boots from its disk instead of going on where it was.
    Start {
        cold: bool,
        reply: Reply,
    },
    Stop {
        force: bool,
        grace: Duration,
        reply: Reply,
    },
    Pause(Reply),
    Resume(Reply),
    Delete(Reply),
    ResizeMemory {
        memory_mib: u32,
        reply: Reply,
    },
    Fork {
        count: usize,
        reply: oneshot::Sender<Result<ForkPoint, ServiceError>>,
    },
    Snapshot {
        order: SnapshotOrder,
        reply: oneshot::Sender<Result<Written, ServiceError>>,
    },
    Rollback {
        source: BranchSource,
        epoch: u64,
        reply: Reply,
    },
    Claim {
        claim: Claim,
        reply: Reply,
    },
    Hibernate(Reply),
}

/// How an actor's life begins.
pub(crate) enum Beginning {
    /// A new VM: make its files, and start it if asked; from a state if there is one.
    Create { start: bool, source: Option<Box<BranchSource>>, reply: Reply },
    /// A VM found in the store after a restart of the server.
    Adopt,
}

/// How long a machine may take to end after its channel has closed.
const EXIT_AFTER_CLOSE: Duration = Duration::from_secs(2);

enum Wake {
    Command(Option<Command>),
    MachineExited(MachineExit),
    GuestClosed(String),
    LimitPassed(limits::Limit),
    ServerEnding,
}

pub(crate) struct VmActor {
    pub(crate) shared: Arc<Shared>,
    pub(crate) record: VmRecord,
    pub(crate) activity: Arc<Activity>,
    pub(crate) commands: mpsc::Receiver<Command>,
    pub(crate) publish: watch::Sender<Snapshot>,
    machine: Option<Arc<dyn Machine>>,
    guest: Option<Arc<dyn Guest>>,
    /// Commands that came while a start was under way.
    pending: VecDeque<Command>,
    /// No limit is looked at before.
    limits_rest_until: tokio::time::Instant,
    gone: bool,
    waiting: WaitingVmms,
}

impl VmActor {
    pub(crate) fn new(
        shared: Arc<Shared>,
        record: VmRecord,
        activity: Arc<Activity>,
        commands: mpsc::Receiver<Command>,
        publish: watch::Sender<Snapshot>,
    ) -> Self {
        Self {
            shared,
            record,
            activity,
            commands,
            publish,
            machine: None,
            guest: None,
            pending: VecDeque::new(),
            limits_rest_until: tokio::time::Instant::now(),
            gone: false,
            waiting: WaitingVmms::default(),
        }
    }

    /// Lives until the VM is gone or the server ends. A running machine goes on without its actor.
    pub(crate) async fn run(mut self, beginning: Beginning) {
        match beginning {
            Beginning::Create { start, source, reply } => {
                let outcome = self.create(start, source.map(|source| *source)).await;
                if outcome.is_err() {
                    self.discard().await;
                }
                let _ = reply.send(outcome);
            }
            Beginning::Adopt => self.adopt().await,
        }
        while !self.gone {
            match self.wait().await {
                Wake::Command(Some(command)) => self.handle(command).await,
                Wake::Command(None) | Wake::ServerEnding => break,
                Wake::MachineExited(exit) => self.machine_exited(exit).await,
                Wake::GuestClosed(reason) => self.guest_closed(reason).await,
                Wake::LimitPassed(limit) => self.limit_passed(limit).await,
            }
        }
        if !self.gone
            && let Some(guest) = &self.guest
        {
            guest.close();
        }
    }

    async fn wait(&mut self) -> Wake {
        if let Some(command) = self.pending.pop_front() {
            return Wake::Command(Some(command));
        }
        let machine = self.machine.clone();
        let exited = async {
            match &machine {
                Some(machine) => start::exited(machine.state()).await,
                None => std::future::pending().await,
            }
        };
        let guest = self.guest.clone();
        let closed = async {
            match &guest {
                Some(guest) => match guest.closed().wait_for(Option::is_some).await {
                    Ok(reason) => reason.as_ref().map_or_else(String::new, ToString::to_string),
                    Err(_) => "its driver stopped".to_owned(),
                },
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            () = self.shared.ending.cancelled() => Wake::ServerEnding,
            exit = exited => Wake::MachineExited(exit),
            command = self.commands.recv() => Wake::Command(command),
            reason = closed => Wake::GuestClosed(reason),
            limit = async {
                tokio::time::sleep_until(self.limits_rest_until).await;
                limits::limit_passes(&self.shared, &self.record, &self.activity).await
            } => Wake::LimitPassed(limit),
        }
    }

    async fn handle(&mut self, command: Command) {
        match command {
            Command::Start { cold, reply } => {
                let outcome = match self.admitted(LifecycleEvent::Start) {
                    Ok(true) => self.start(cold).await,
                    other => other.map(|_| ()),
                };
                let _ = reply.send(outcome);
            }
            Command::Stop { force, grace, reply } => {
                let outcome = match self.admitted(LifecycleEvent::Stop) {
                    Ok(true) => self.stop(force, grace).await,
                    // What could not be written back when it stopped is tried again. What a sleeping VM has is its own.
                    Ok(false) if self.record.rest.is_none() => self.write_back().await,
                    other => other.map(|_| ()),
                };
                let _ = reply.send(outcome);
            }
            Command::Pause(reply) => {
                let outcome = match self.admitted(LifecycleEvent::Pause) {
                    Ok(true) => self.pause().await,
                    // Somebody wants it to stay so.
                    Ok(false) => {
                        self.record.rest = None;
                        self.save(None).await
                    }
                    other => other.map(|_| ()),
                };
                let _ = reply.send(outcome);
            }
            Command::Resume(reply) => {
                let outcome = match self.admitted(LifecycleEvent::Resume) {
                    Ok(true) => self.resume().await,
                    other => other.map(|_| ()),
                };
                let _ = reply.send(outcome);
            }
            Command::Delete(reply) => {
                let outcome = match self.admitted(LifecycleEvent::Delete) {
                    Ok(true) => self.delete().await,
                    other => other.map(|_| ()),
                };
                let _ = reply.send(outcome);
            }
            Command::ResizeMemory { memory_mib, reply } => {
                let _ = reply.send(self.resize_memory(memory_mib).await);
            }
            Command::Fork { count, reply } => {
                let _ = reply.send(self.fork_point(count).await);
            }
            Command::Snapshot { order, reply } => {
                let _ = reply.send(self.snapshot(order).await);
            }
            Command::Hibernate(reply) => {
                let _ = reply.send(self.hibernate().await);
            }
            Command::Claim { claim, reply } => {
                let _ = reply.send(self.claim(claim).await);
            }
            Command::Rollback { source, epoch, reply } => {
                let _ = reply.send(self.rollback(source, epoch).await);
            }
        }
    }

    fn admitted(&self, event: LifecycleEvent) -> Result<bool, ServiceError> {
        Ok(matches!(admit(self.record.phase, event)?, Admission::Do(_)))
    }

    async fn create(&mut self, start: bool, source: Option<BranchSource>) -> Result<(), ServiceError> {
        let ports = self.shared.ports.clone();
        hooks::run(&ports, &self.record, HookPoint::BeforeCreate).await?;
        // The row is written while files are made and the machine boots. A crash before it is there leaves a directory
        // that no row knows, which the next server removes with all that runs in it; the row says `creating` until the
        // VM runs, so that a crash after it undoes the creation too.
        let record = self.record.clone();
        let row = ports.store.insert_vm(&record);
        if start {
            let (row, up) = futures::join!(row, self.create_files_and_bring_up(source));
            row?;
            self.running(up?).await?;
            let _ = hooks::run(&ports, &self.record, HookPoint::AfterCreate).await;
            let _ = hooks::run(&ports, &self.record, HookPoint::AfterStart).await;
        } else {
            let (row, files) = futures::join!(row, self.create_files(source.as_ref()));
            row?;
            files?;
            self.request(LifecycleEvent::Created).await?;
            let _ = hooks::run(&ports, &self.record, HookPoint::AfterCreate).await;
        }
        Ok(())
    }

    async fn create_files(&self, source: Option<&BranchSource>) -> Result<(), ServiceError> {
        let (ports, id) = (&self.shared.ports, &self.record.id);
        match source {
            Some(source) => ports.snapshots.create_vm_files_from(id, source).await?,
            None => ports.vm_storage.create_vm_files(id, self.record.template.disk_mib).await?,
        };
        Ok(())
    }

    async fn create_files_and_bring_up(
        &mut self,
        source: Option<BranchSource>,
    ) -> Result<BroughtUp, ServiceError> {
        self.create_files(source.as_ref()).await?;
        hooks::run(&self.shared.ports, &self.record, HookPoint::BeforeStart).await?;
        self.bring_up_or_overtaken(source).await
    }

    async fn start(&mut self, cold: bool) -> Result<(), ServiceError> {
        hooks::run(&self.shared.ports, &self.record, HookPoint::BeforeStart).await?;
        let source = if cold { None } else { self.dream().await? };
        if source.is_none() {
            // A boot is one on the user's own disk files.
            self.write_back().await?;
        }
        self.request(LifecycleEvent::Start).await?;
        self.bring_up_after_request(source).await
    }

    /// The phase says that it starts: it runs afterwards, or has failed.
    async fn bring_up_after_request(&mut self, source: Option<BranchSource>) -> Result<(), ServiceError> {
        let ports = self.shared.ports.clone();
        match self.bring_up_or_overtaken(source).await {
            Ok(up) => {
                if let Err(error) = self.running(up).await {
                    self.end_machine(None).await;
                    self.note(LifecycleEvent::Lost, Some(format!("it could not be recorded: {error}"))).await;
                    return Err(error);
                }
                let _ = hooks::run(&ports, &self.record, HookPoint::AfterStart).await;
                Ok(())
            }
            Err(error) => {
                self.sweep().await;
                match error {
                    ServiceError::Overtaken(_) => self.stopped_by_force().await,
                    _ => self.note(LifecycleEvent::Lost, Some(error.to_string())).await,
                }
                Err(error)
            }
        }
    }

    /// Brings the machine up, unless a stop or a delete arrives meanwhile.
    async fn bring_up_or_overtaken(
        &mut self,
        source: Option<BranchSource>,
    ) -> Result<BroughtUp, ServiceError> {
        let shared = Arc::clone(&self.shared);
        let record = self.record.clone();
        let up = bring_up(&shared.ports, &record, source, shared.settings.kill_deadline);
        tokio::pin!(up);
        loop {
            tokio::select! {
                outcome = &mut up => return outcome,
                () = shared.ending.cancelled() => return Err(ServiceError::ShuttingDown),
                Some(command) = self.commands.recv() => {
                    let overtaken = match &command {
                        Command::Stop { .. } => Some("stopped"),
                        Command::Delete(_) => Some("deleted"),
                        _ => None,
                    };
                    self.pending.push_back(command);
                    if let Some(how) = overtaken {
                        return Err(ServiceError::Overtaken(how));
                    }
                }
            }
        }
    }

    /// The VM runs. If that cannot be stored it is ended again: the next server would not know of it.
    async fn running(&mut self, up: BroughtUp) -> Result<(), ServiceError> {
        let now = self.shared.ports.clock.now_ms();
        self.activity.touch(now);
        self.record.epoch = up.epoch;
        self.record.image_digest = up.image_digest;
        self.record.machine = serde_json::to_value(up.machine.record()).ok();
        self.record.started_ms = Some(now);
        self.record.failure = None;
        self.record.phase = Phase::Running;
        let slept = self.record.rest.take();
        self.machine = Some(up.machine);
        self.guest = Some(up.guest);
        if let Err(error) = self.save(None).await {
            self.record.rest = slept;
            return Err(error);
        }
        self.end_sleep(slept).await;
        Ok(())
    }

    async fn stop(&mut self, force: bool, grace: Duration) -> Result<(), ServiceError> {
        let ports = self.shared.ports.clone();
        if !force {
            hooks::run(&ports, &self.record, HookPoint::BeforeStop).await?;
        }
        let was_running = self.record.phase == Phase::Running;
        self.request(LifecycleEvent::Stop).await?;
        self.end_machine(if force || !was_running { None } else { Some(grace) }).await;
        // It has stopped in any case; whoever asked must know that a file of his is behind.
        let written_back = self.write_back().await;
        self.note(LifecycleEvent::Stopped, None).await;
        let _ = hooks::run(&ports, &self.record, HookPoint::AfterStop).await;
        written_back
    }

    /// Ends the machine: by the agent within `grace`, else by the VMM, else by signal.
    async fn end_machine(&mut self, grace: Option<Duration>) {
        self.waiting.clear();
        if let Some(machine) = self.machine.clone() {
            if let (Some(grace), Some(guest)) = (grace, self.guest.clone())
                && !self.powered_off(&*machine, &*guest, grace).await
            {
                tracing::warn!(vm = %self.record.id, "the guest did not power off by itself, ending it");
            }
            if let Some(guest) = self.guest.take() {
                guest.close();
            }
            if let Err(error) = machine.kill(self.shared.settings.kill_deadline).await {
                tracing::error!(vm = %self.record.id, %error, "the machine did not end, sweeping");
            }
        }
        self.sweep().await;
        self.machine = None;
        self.guest = None;
        self.record.machine = None;
    }

    /// Asks the agent to power off and waits for it, no longer than one and a half times `grace` (the half is for the
    /// kernel to sync), and not when a delete or a stop by force arrives or the server ends.
    async fn powered_off(&mut self, machine: &dyn Machine, guest: &dyn Guest, grace: Duration) -> bool {
        let polite = async {
            guest.shutdown(ShutdownMode::PowerOff, grace).await?;
            Ok::<_, GuestError>(start::exited(machine.state()).await)
        };
        let limited = tokio::time::timeout(grace + grace / 2, polite);
        tokio::pin!(limited);
        loop {
            tokio::select! {
                outcome = &mut limited => return matches!(outcome, Ok(Ok(_))),
                () = self.shared.ending.cancelled() => return false,
                Some(command) = self.commands.recv() => {
                    let impatient = matches!(command, Command::Delete(_) | Command::Stop { force: true, .. });
                    self.pending.push_back(command);
                    if impatient {
                        return false;
                    }
                }
            }
        }
    }

    async fn pause(&mut self) -> Result<(), ServiceError> {
        let machine = self.living()?;
        if let Some(guest) = &self.guest {
            guest.expect_heartbeats(false);
        }
        if let Err(error) = machine.pause().await {
            // One that answers too late still stops; what follows it lets it go on.
            let _ = machine.resume().await;
            if let Some(guest) = &self.guest {
                guest.expect_heartbeats(true);
            }
            return Err(error.into());
        }
        let requested = self.request(LifecycleEvent::Pause).await;
        if requested.is_err() {
            let _ = machine.resume().await;
            if let Some(guest) = &self.guest {
                guest.expect_heartbeats(true);
            }
        }
        requested
    }

    async fn resume(&mut self) -> Result<(), ServiceError> {
        let machine = self.living()?;
        machine.resume().await?;
        match self.guest.clone() {
            Some(guest) => guest.expect_heartbeats(true),
            // Paused when the server restarted: the channel is opened now.
            None => {
                if let Err(error) = self.connect_again(&machine).await {
                    self.fail(format!("the agent did not answer after the resume: {error}")).await;
                    return Err(error.into());
                }
            }
        }
        self.activity.touch(self.shared.ports.clock.now_ms());
        self.record.rest = None;
        let requested = self.request(LifecycleEvent::Resume).await;
        if requested.is_err() {
            if let Some(guest) = &self.guest {
                guest.expect_heartbeats(false);
            }
            let _ = machine.pause().await;
        }
        requested
    }

    fn living(&self) -> Result<Arc<dyn Machine>, ServiceError> {
        self.machine.clone().ok_or_else(|| ServiceError::NotRunning {
            phase: self.record.phase,
            advice: "start it first".to_owned(),
        })
    }

    async fn resize_memory(&mut self, memory_mib: u32) -> Result<(), ServiceError> {
        if memory_mib > self.record.template.memory_mib {
            return Err(ServiceError::OverLimit {
                field: "memory_mib",
                asked: memory_mib.into(),
                limit: self.record.template.memory_mib.into(),
            });
        }
        if memory_mib < 64 {
            return Err(ServiceError::Invalid {
                field: "memory_mib",
                reason: format!("{memory_mib} is too little for a running guest, at least 64 is needed"),
            });
        }
        let machine = self.living()?;
        machine.balloon().ok_or(ServiceError::NoBalloon)?.resize(memory_mib).await?;
        Ok(())
    }

    async fn sweep(&self) {
        let directory = self.shared.ports.vm_storage.vm_directory(&self.record.id);
        if let Err(error) = self.shared.ports.hypervisor.sweep(&self.record.id, &directory).await {
            tracing::error!(vm = %self.record.id, %error, "a VMM process could not be ended");
        }
    }

    async fn machine_exited(&mut self, exit: MachineExit) {
        let asked_to_restart = exit == MachineExit::GuestReset;
        if matches!(exit, MachineExit::GuestShutdown | MachineExit::GuestReset) {
            self.end_machine(None).await;
            self.write_back_or_log().await;
            self.note(LifecycleEvent::Stopped, Some(exit.to_string())).await;
            if asked_to_restart {
                if let Err(error) = self.start(false).await {
                    tracing::warn!(vm = %self.record.id, %error, "restart asked by the guest failed");
                }
            } else if self.record.limits.ephemeral {
                self.erase_ephemeral().await;
            }
        } else {
            self.fail(exit.to_string()).await;
        }
    }

    async fn guest_closed(&mut self, reason: String) {
        // A guest that powers off or dies closes its channel a moment before its machine ends.
        if let Some(machine) = &self.machine {
            let exit = tokio::time::timeout(EXIT_AFTER_CLOSE, start::exited(machine.state())).await;
            if let Ok(exit) = exit {
                return self.machine_exited(exit).await;
            }
        }
        self.fail(format!("the agent was lost: {reason}")).await;
    }

    async fn fail(&mut self, reason: String) {
        tracing::warn!(vm = %self.record.id, reason, "VM failed");
        self.end_machine(None).await;
        self.note(LifecycleEvent::Lost, Some(reason)).await;
        if let Some(member) = &self.record.pool {
            self.shared.pools.vm_gone(&member.pool);
        }
        if self.record.limits.ephemeral {
            self.erase_ephemeral().await;
        }
    }
}
