//! One task per VM: owns its record and its machine, does one command after the other.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use microvm_ports::hypervisor::{MachineExit, MachineRecord};
use microvm_ports::{Guest, GuestError, Machine};
use microvm_types::lifecycle::{Admission, LifecycleEvent, admit, next};
use microvm_types::template::HookPoint;
use microvm_types::vm::VmRecord;
use microvm_types::{Phase, guest::ShutdownMode};
use tokio::sync::{mpsc, oneshot, watch};

use crate::activity::Activity;
use crate::error::ServiceError;
use crate::events::VmEvent;
use crate::hooks;
use crate::service::Shared;
use crate::start::{self, BroughtUp, bring_up};
use crate::view::Snapshot;

pub(crate) type Reply = oneshot::Sender<Result<(), ServiceError>>;

/// What can be asked of a VM.
pub(crate) enum Command {
    Start(Reply),
    Stop { force: bool, grace: Duration, reply: Reply },
    Pause(Reply),
    Resume(Reply),
    Delete(Reply),
    ResizeMemory { memory_mib: u32, reply: Reply },
}

/// How an actor's life begins.
pub(crate) enum Beginning {
    /// A new VM: make its files, and start it if asked.
    Create { start: bool, reply: Reply },
    /// A VM found in the store after a restart of the server.
    Adopt,
}

/// How long a machine may take to end after its channel has closed.
const EXIT_AFTER_CLOSE: Duration = Duration::from_secs(2);

enum Wake {
    Command(Option<Command>),
    MachineExited(MachineExit),
    GuestClosed(String),
    LimitPassed(&'static str),
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
    gone: bool,
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
            gone: false,
        }
    }

    /// Lives until the VM is gone or the server ends. A running machine goes on without its actor.
    pub(crate) async fn run(mut self, beginning: Beginning) {
        match beginning {
            Beginning::Create { start, reply } => {
                let outcome = self.create(start).await;
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
            limit = limit_passes(&self.shared, &self.record, &self.activity) => Wake::LimitPassed(limit),
        }
    }

    async fn handle(&mut self, command: Command) {
        match command {
            Command::Start(reply) => {
                let outcome = match self.admitted(LifecycleEvent::Start) {
                    Ok(true) => self.start().await,
                    other => other.map(|_| ()),
                };
                let _ = reply.send(outcome);
            }
            Command::Stop { force, grace, reply } => {
                let outcome = match self.admitted(LifecycleEvent::Stop) {
                    Ok(true) => self.stop(force, grace).await,
                    other => other.map(|_| ()),
                };
                let _ = reply.send(outcome);
            }
            Command::Pause(reply) => {
                let outcome = match self.admitted(LifecycleEvent::Pause) {
                    Ok(true) => self.pause().await,
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
        }
    }

    fn admitted(&self, event: LifecycleEvent) -> Result<bool, ServiceError> {
        Ok(matches!(admit(self.record.phase, event)?, Admission::Do(_)))
    }

    async fn create(&mut self, start: bool) -> Result<(), ServiceError> {
        let ports = self.shared.ports.clone();
        hooks::run(&ports, &self.record, HookPoint::BeforeCreate).await?;
        // The row is written while files are made and the machine boots. A crash before it is there leaves a directory
        // that no row knows, which the next server removes with all that runs in it; the row says `creating` until the
        // VM runs, so that a crash after it undoes the creation too.
        let record = self.record.clone();
        let row = ports.store.insert_vm(&record);
        if start {
            let (row, up) = futures::join!(row, self.create_files_and_bring_up());
            row?;
            self.running(up?).await?;
            let _ = hooks::run(&ports, &self.record, HookPoint::AfterCreate).await;
            let _ = hooks::run(&ports, &self.record, HookPoint::AfterStart).await;
        } else {
            let (row, files) = futures::join!(row, self.create_files());
            row?;
            files?;
            self.enter(LifecycleEvent::Created, None).await?;
            let _ = hooks::run(&ports, &self.record, HookPoint::AfterCreate).await;
        }
        Ok(())
    }

    async fn create_files(&self) -> Result<(), ServiceError> {
        let storage = Arc::clone(&self.shared.ports.vm_storage);
        storage.create_vm_files(&self.record.id, self.record.template.disk_mib).await?;
        Ok(())
    }

    async fn create_files_and_bring_up(&mut self) -> Result<BroughtUp, ServiceError> {
        self.create_files().await?;
        hooks::run(&self.shared.ports, &self.record, HookPoint::BeforeStart).await?;
        self.bring_up_or_overtaken().await
    }

    /// Removes every trace of a VM whose creation failed.
    async fn discard(&mut self) {
        self.record.phase = Phase::Deleting;
        self.tell(None);
        self.erase().await;
    }

    async fn start(&mut self) -> Result<(), ServiceError> {
        let ports = self.shared.ports.clone();
        hooks::run(&ports, &self.record, HookPoint::BeforeStart).await?;
        self.enter(LifecycleEvent::Start, None).await?;
        match self.bring_up_or_overtaken().await {
            Ok(up) => {
                self.running(up).await?;
                let _ = hooks::run(&ports, &self.record, HookPoint::AfterStart).await;
                Ok(())
            }
            Err(error) => {
                self.sweep().await;
                match error {
                    ServiceError::Overtaken(_) => {
                        self.record.machine = None;
                        self.record.phase = Phase::Stopped;
                        self.save(None).await?;
                    }
                    _ => self.enter(LifecycleEvent::Lost, Some(error.to_string())).await?,
                }
                Err(error)
            }
        }
    }

    /// Brings the machine up, unless a stop or a delete arrives meanwhile.
    async fn bring_up_or_overtaken(&mut self) -> Result<BroughtUp, ServiceError> {
        let shared = Arc::clone(&self.shared);
        let record = self.record.clone();
        let up = bring_up(&shared.ports, &record, shared.settings.kill_deadline);
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

    async fn running(&mut self, up: BroughtUp) -> Result<(), ServiceError> {
        let now = self.shared.ports.clock.now_ms();
        self.record.epoch += 1;
        self.record.image_digest = up.image_digest;
        self.record.machine = serde_json::to_value(up.machine.record()).ok();
        self.record.started_ms = Some(now);
        self.record.failure = None;
        self.record.phase = Phase::Running;
        self.machine = Some(up.machine);
        self.guest = Some(up.guest);
        self.save(None).await
    }

    async fn stop(&mut self, force: bool, grace: Duration) -> Result<(), ServiceError> {
        let ports = self.shared.ports.clone();
        if !force {
            hooks::run(&ports, &self.record, HookPoint::BeforeStop).await?;
        }
        let was_running = self.record.phase == Phase::Running;
        self.enter(LifecycleEvent::Stop, None).await?;
        self.end_machine(if force || !was_running { None } else { Some(grace) }).await;
        self.enter(LifecycleEvent::Stopped, None).await?;
        let _ = hooks::run(&ports, &self.record, HookPoint::AfterStop).await;
        Ok(())
    }

    /// Ends the machine: by the agent within `grace`, else by the VMM, else by signal.
    async fn end_machine(&mut self, grace: Option<Duration>) {
        if let Some(machine) = self.machine.clone() {
            if let (Some(grace), Some(guest)) = (grace, self.guest.clone()) {
                let polite = async {
                    guest.shutdown(ShutdownMode::PowerOff, grace).await?;
                    Ok::<_, GuestError>(start::exited(machine.state()).await)
                };
                // Half of the grace is the processes' own; the rest is for the kernel to sync and power off.
                if tokio::time::timeout(grace + grace / 2, polite).await.is_err() {
                    tracing::warn!(vm = %self.record.id, "the guest did not power off in time, killing it");
                }
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

    async fn pause(&mut self) -> Result<(), ServiceError> {
        let machine = self.living()?;
        if let Some(guest) = &self.guest {
            guest.expect_heartbeats(false);
        }
        if let Err(error) = machine.pause().await {
            if let Some(guest) = &self.guest {
                guest.expect_heartbeats(true);
            }
            return Err(error.into());
        }
        self.enter(LifecycleEvent::Pause, None).await
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
        self.enter(LifecycleEvent::Resume, None).await
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

    pub(crate) async fn delete(&mut self) -> Result<(), ServiceError> {
        let ports = self.shared.ports.clone();
        hooks::run(&ports, &self.record, HookPoint::BeforeDelete).await?;
        self.enter(LifecycleEvent::Delete, None).await?;
        self.erase().await;
        let _ = hooks::run(&ports, &self.record, HookPoint::AfterDelete).await;
        Ok(())
    }

    /// Ends the machine and removes files, row and name, in this order, so that what is left after a crash at any
    /// point is found again.
    pub(crate) async fn erase(&mut self) {
        self.end_machine(None).await;
        let (id, ports) = (self.record.id.clone(), self.shared.ports.clone());
        if let Err(error) = ports.vm_storage.remove_vm_files(&id).await {
            tracing::error!(vm = %id, %error, "files of a deleted VM could not be removed, the next start tries again");
        } else if let Err(error) = ports.store.delete_vm(&id).await {
            tracing::error!(vm = %id, %error, "row of a deleted VM could not be removed, the next start tries again");
        }
        self.shared.registry.remove(&id, &self.record.name);
        self.gone = true;
        self.publish_now();
        self.tell(None);
        self.commands.close();
        while let Some(command) = self.pending.pop_front().or_else(|| self.commands.try_recv().ok()) {
            let unknown = || Err(ServiceError::UnknownVm(id.to_string()));
            let _ = match command {
                Command::Delete(reply) => reply.send(Ok(())),
                Command::Start(reply)
                | Command::Stop { reply, .. }
                | Command::Pause(reply)
                | Command::Resume(reply)
                | Command::ResizeMemory { reply, .. } => reply.send(unknown()),
            };
        }
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
            if self.enter(LifecycleEvent::Stopped, Some(exit.to_string())).await.is_err() {
                return;
            }
            if asked_to_restart {
                if let Err(error) = self.start().await {
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
        if self.enter(LifecycleEvent::Lost, Some(reason)).await.is_ok() && self.record.limits.ephemeral {
            self.erase_ephemeral().await;
        }
    }

    async fn limit_passed(&mut self, limit: &'static str) {
        tracing::info!(vm = %self.record.id, limit, "limit passed");
        if self.record.limits.ephemeral {
            self.erase_ephemeral().await;
        } else if let Err(error) = self.stop(false, self.shared.settings.stop_grace).await {
            tracing::warn!(vm = %self.record.id, %error, "could not be stopped at its limit");
        }
    }

    async fn erase_ephemeral(&mut self) {
        if let Err(error) = self.delete().await {
            tracing::warn!(vm = %self.record.id, %error, "a hook kept an ephemeral VM from being deleted");
        }
    }

    /// Takes up a VM of an earlier server process.
    async fn adopt(&mut self) {
        match self.record.phase {
            Phase::Creating | Phase::Deleting => {
                tracing::info!(vm = %self.record.id, phase = %self.record.phase, "undoing what a crash interrupted");
                self.discard().await;
            }
            Phase::Starting | Phase::Stopping => {
                self.end_machine(None).await;
                self.record.phase = Phase::Stopped;
                if let Err(error) = self.save(None).await {
                    tracing::error!(vm = %self.record.id, %error, "could not be saved");
                }
            }
            Phase::Stopped | Phase::Failed => self.sweep().await,
            Phase::Running | Phase::Paused => {
                if let Err(reason) = self.adopt_machine().await {
                    self.fail(reason).await;
                }
            }
        }
    }

    async fn adopt_machine(&mut self) -> Result<(), String> {
        let record: MachineRecord = self
            .record
            .machine
            .clone()
            .and_then(|value| serde_json::from_value(value).ok())
            .ok_or("its machine was not recorded")?;
        let directory = self.shared.ports.vm_storage.vm_directory(&self.record.id);
        let machine = self
            .shared
            .ports
            .hypervisor
            .adopt(&self.record.id, &directory, &record)
            .await
            .map_err(|error| format!("its machine ended while the server was away: {error}"))?;
        self.machine = Some(Arc::clone(&machine));
        if self.record.phase == Phase::Running {
            // The server may have died between the VMM's pause or resume and its own note of it.
            machine.resume().await.map_err(|error| error.to_string())?;
            self.connect_again(&machine)
                .await
                .map_err(|error| format!("its agent did not answer: {error}"))?;
        } else {
            machine.pause().await.map_err(|error| error.to_string())?;
        }
        self.save(None).await.map_err(|error| error.to_string())
    }

    async fn connect_again(&mut self, machine: &Arc<dyn Machine>) -> Result<(), GuestError> {
        let ports = &self.shared.ports;
        // The image's variables matter for later commands; if it cannot be read now the template's own must do.
        let config = ports
            .images
            .image(&self.record.image_digest)
            .await
            .map(|image| image.info.config)
            .unwrap_or_default();
        let identity = start::identity(ports, &self.record, &config, Vec::new());
        let guest = ports
            .connector
            .connect(
                &machine.endpoint(),
                self.record.epoch + 1,
                &identity,
                self.shared.settings.adopt_deadline,
            )
            .await?;
        self.record.epoch += 1;
        self.guest = Some(guest);
        Ok(())
    }

    async fn enter(&mut self, event: LifecycleEvent, reason: Option<String>) -> Result<(), ServiceError> {
        self.record.phase = next(self.record.phase, event)?;
        self.record.failure = if self.record.phase == Phase::Failed { reason.clone() } else { None };
        self.save(reason).await
    }

    /// Writes the record, then shows it: nothing is reported that a crash could take back.
    async fn save(&mut self, reason: Option<String>) -> Result<(), ServiceError> {
        self.record.updated_ms = self.shared.ports.clock.now_ms();
        let saved = self.shared.ports.store.update_vm(&self.record).await;
        self.publish_now();
        self.tell(reason);
        Ok(saved?)
    }

    fn publish_now(&self) {
        self.publish.send_replace(Snapshot {
            record: self.record.clone(),
            machine: self.machine.clone(),
            guest: self.guest.clone(),
            gone: self.gone,
        });
    }

    fn tell(&self, reason: Option<String>) {
        let _ = self.shared.events.send(VmEvent {
            id: self.record.id.clone(),
            name: self.record.name.clone(),
            phase: (!self.gone).then_some(self.record.phase),
            reason,
            at_ms: self.shared.ports.clock.now_ms(),
        });
    }
}

/// Waits until the VM's idle or lifetime limit passes; for ever if it has none.
async fn limit_passes(shared: &Shared, record: &VmRecord, activity: &Activity) -> &'static str {
    let clock = &shared.ports.clock;
    let left = |since_ms: i64, seconds: u64| {
        let end = since_ms.saturating_add(i64::try_from(seconds).unwrap_or(i64::MAX).saturating_mul(1_000));
        Duration::from_millis(u64::try_from(end.saturating_sub(clock.now_ms())).unwrap_or(0))
    };
    // Only what has a machine costs anything; an ephemeral VM is removed even when it is stopped.
    let applies = record.limits.ephemeral || matches!(record.phase, Phase::Running | Phase::Paused);
    let lifetime = async {
        match record.limits.lifetime_seconds {
            Some(seconds) if applies => tokio::time::sleep(left(record.created_ms, seconds)).await,
            _ => std::future::pending().await,
        }
    };
    let idle = async {
        let Some(seconds) = record.limits.idle_seconds.filter(|_| applies) else {
            return std::future::pending().await;
        };
        loop {
            match activity.idle_since_ms() {
                None => activity.changed().await,
                Some(since) => {
                    let left = left(since, seconds);
                    if left.is_zero() {
                        return;
                    }
                    tokio::time::sleep(left).await;
                }
            }
        }
    };
    tokio::select! {
        () = lifetime => "lifetime",
        () = idle => "idle",
    }
}
