//! One task per VM: owns its record and its machine, does one command after the other.

mod adopt;
mod beginning;
mod branching;
mod claim;
mod ending;
mod limits;
mod reach;
mod record;
mod removal;
mod rest;
mod retries;
mod room;

use std::collections::VecDeque;
use std::sync::Arc;

use microvm_ports::hypervisor::MachineExit;
use microvm_ports::storage::ImageConfig;
use microvm_ports::{Guest, GuestError, Machine};
use microvm_types::lifecycle::{Admission, Denied, LifecycleEvent, Work, admit, permits};
use microvm_types::vm::VmRecord;
use microvm_types::{ErrorKind, Life, Phase};
use tokio::sync::{mpsc, watch};

use self::retries::Retries;
use crate::error::ServiceError;
use crate::events::Cause;
use crate::launch;
use crate::state::Reservation;
use crate::vm::activity::Activity;
use crate::vm::command::{Beginning, Command, Order};
use crate::vm::shared::Shared;
use crate::vm::standby::StandbyVmms;
use crate::vm::view::{Published, Unreachable};

#[expect(clippy::large_enum_variant, reason = "one at a time, and taken apart at once")]
enum Wake {
    Order(Option<Order>),
    MachineExited(MachineExit),
    GuestClosed(String),
    ReachAgain,
    Restart,
    DiskFull,
    LookForRoom,
    LimitPassed(limits::Limit),
    ServerEnding,
}

pub(crate) struct VmActor {
    pub(crate) shared: Arc<Shared>,
    pub(crate) record: VmRecord,
    pub(crate) activity: Arc<Activity>,
    pub(crate) commands: mpsc::Receiver<Order>,
    pub(crate) publish: watch::Sender<Published>,
    machine: Option<Arc<dyn Machine>>,
    guest: Option<Arc<dyn Guest>>,
    /// How programs run in its image; `None` until this server has asked.
    config: Option<ImageConfig>,
    /// Set while the machine runs and the agent does not answer.
    unreachable: Option<Unreachable>,
    reaching: Retries,
    /// Starts that the guest asks for by a reset.
    restarting: Retries,
    /// Commands that came while a start was under way.
    pending: VecDeque<Order>,
    /// No limit is looked at before.
    limits_rest_until: tokio::time::Instant,
    standby: StandbyVmms,
    /// Why it does what it does now.
    cause: Cause,
    /// What it takes of the host's limits, until it is gone.
    reservation: Option<Reservation>,
    /// The phase that was told last.
    told: Phase,
}

impl VmActor {
    pub(crate) fn new(
        shared: Arc<Shared>,
        record: VmRecord,
        activity: Arc<Activity>,
        commands: mpsc::Receiver<Order>,
        publish: watch::Sender<Published>,
        cause: Cause,
        reservation: Reservation,
    ) -> Self {
        let told = record.phase();
        Self {
            cause,
            told,
            reservation: Some(reservation),
            shared,
            record,
            activity,
            commands,
            publish,
            machine: None,
            guest: None,
            config: None,
            unreachable: None,
            reaching: Retries::default(),
            restarting: Retries::default(),
            pending: VecDeque::new(),
            limits_rest_until: tokio::time::Instant::now(),
            standby: StandbyVmms::default(),
        }
    }

    /// Lives until the VM is gone or the server ends. A running machine goes on without its actor.
    pub(crate) async fn run(mut self, beginning: Beginning) {
        match beginning {
            Beginning::Create { start, planned, reply } => {
                let outcome = self.create(start, *planned).await;
                if outcome.is_err() {
                    self.discard().await;
                }
                let _ = reply.send(outcome);
            }
            Beginning::Adopt => self.adopt().await,
        }
        self.cause = Cause::server();
        while self.record.phase() != Phase::Deleted {
            match self.wait().await {
                Wake::Order(Some(order)) => {
                    self.cause = order.cause;
                    self.handle(order.command).await;
                    self.cause = Cause::server();
                }
                Wake::Order(None) | Wake::ServerEnding => break,
                Wake::MachineExited(exit) => self.machine_exited(exit).await,
                Wake::GuestClosed(reason) => self.guest_closed(reason).await,
                Wake::ReachAgain => self.reach_again().await,
                Wake::Restart => self.restart().await,
                Wake::DiskFull => self.disk_is_full().await,
                Wake::LookForRoom => self.look_for_room().await,
                Wake::LimitPassed(limit) => self.limit_passed(limit).await,
            }
        }
        if self.record.phase() != Phase::Deleted
            && let Some(guest) = &self.guest
        {
            guest.close();
        }
    }

    async fn wait(&mut self) -> Wake {
        if let Some(order) = self.pending.pop_front() {
            return Wake::Order(Some(order));
        }
        let machine = self.machine.clone();
        let exited = async {
            match &machine {
                Some(machine) => launch::exited(machine.state()).await,
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
        // Whoever cannot be used is not idle.
        let usable = self.unreachable.is_none() && !self.waits_for_room();
        let full = async {
            match &machine {
                Some(machine) if self.record.phase() == Phase::Running => {
                    launch::disk_full(machine.state()).await
                }
                _ => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            () = self.shared.ending.cancelled() => Wake::ServerEnding,
            exit = exited => Wake::MachineExited(exit),
            () = full => Wake::DiskFull,
            () = self.look_due(), if self.waits_for_room() => Wake::LookForRoom,
            order = self.commands.recv() => Wake::Order(order),
            reason = closed => Wake::GuestClosed(reason),
            () = self.reaching.due(), if self.unreachable.is_some() => Wake::ReachAgain,
            () = self.restarting.due() => Wake::Restart,
            limit = async {
                tokio::time::sleep_until(self.limits_rest_until).await;
                limits::limit_passes(&self.shared, &self.record, &self.activity, usable).await
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
                self.restarting.cancel();
                let outcome = match self.admitted(LifecycleEvent::Stop) {
                    Ok(true) => self.stop(force, grace).await,
                    // What could not be written back when it stopped is tried again. What a sleeping VM has is its own.
                    Ok(false) if self.record.life.asleep().is_none() => self.write_back().await,
                    other => other.map(|_| ()),
                };
                let _ = reply.send(outcome);
            }
            Command::Pause(reply) => {
                let outcome = match self.admitted(LifecycleEvent::Pause) {
                    Ok(true) => self.pause(|life| life.apply(LifecycleEvent::Pause)).await,
                    Ok(false) => {
                        self.record.life.stay_paused();
                        self.save(None).await
                    }
                    other => other.map(|_| ()),
                };
                let _ = reply.send(outcome);
            }
            Command::PutIntoPool(reply) => {
                let outcome = match self.admitted(LifecycleEvent::Pooled) {
                    Ok(true) => self.pause(|life| life.apply(LifecycleEvent::Pooled)).await,
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
                self.restarting.cancel();
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
            Command::MakeRoom => self.make_room().await,
            Command::Rehearse(reply) => {
                let _ = reply.send(self.rehearse().await);
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
        Ok(matches!(admit(self.record.phase(), event)?, Admission::Do(_)))
    }

    /// Stops the processors; `change` says what the VM is then.
    async fn pause(
        &mut self,
        change: impl FnOnce(&mut Life) -> Result<(), Denied>,
    ) -> Result<(), ServiceError> {
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
        let requested = self.request_by(change).await;
        if requested.is_err() {
            let _ = machine.resume().await;
            if let Some(guest) = &self.guest {
                guest.expect_heartbeats(true);
            }
        }
        requested
    }

    /// Tells a guest that stood still the time. One that cannot be told goes on with the old time, and the log says so.
    async fn tell_time(&mut self) {
        let (Some(guest), Some(machine)) = (self.guest.clone(), self.machine.clone()) else { return };
        let answer = tokio::select! {
            biased;
            // Stopped again at once: it is told when it goes on for good.
            () = launch::disk_full(machine.state()) => return,
            answer = guest.tell_time() => answer,
        };
        let told = match answer {
            // An older agent takes the time only with an identity.
            Err(GuestError::Refused { kind: ErrorKind::Unsupported, .. }) => self.rehearse().await,
            told => told.map_err(ServiceError::from),
        };
        if let Err(error) = told {
            tracing::warn!(vm = %self.record.id, %error, "the guest's clock is late by as long as it stood still");
        }
    }

    async fn resume(&mut self) -> Result<(), ServiceError> {
        let machine = self.living()?;
        machine.resume().await?;
        match self.guest.clone() {
            Some(guest) => guest.expect_heartbeats(true),
            // Paused when the server restarted: the channel is opened now.
            None => {
                if let Err(error) = self.connect_again(&machine).await {
                    // Its processors run: that is noted, and what is missing is its agent.
                    self.request(LifecycleEvent::Resume).await?;
                    self.unreachable(format!("the agent did not answer after the resume: {error}"));
                    return Err(error.into());
                }
            }
        }
        self.tell_time().await;
        self.activity.touch(self.shared.ports.clock.now_ms());
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
        self.machine.clone().ok_or_else(|| ServiceError::NotRunning(self.record.phase()))
    }

    /// Whether the table permits `work` now.
    fn permitted(&self, work: Work) -> Result<(), ServiceError> {
        permits(self.record.phase(), work).map_err(|denied| ServiceError::NotRunning(denied.phase))
    }

    async fn resize_memory(&mut self, memory_mib: u32) -> Result<(), ServiceError> {
        self.permitted(Work::ResizeMemory)?;
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
}
