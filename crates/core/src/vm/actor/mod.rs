//! One task per VM: owns its record and its machine, does one command after the other.
//!
//! ```text
//!  VmActor ── decides: orders, exits, limits, lost agents
//!    └─ Vm ── does: begin, pause, resume, hibernate, stop
//!        ├─ Journal    record, machine and guest; every change is stored, published and told there
//!        ├─ Inbox      orders; which of them overtake work that is under way
//!        ├─ Reach      the way to the agent, and when it is tried again
//!        └─ Branching  states for forks and snapshots, VMMs that wait for children
//! ```

mod adopt;
mod beginning;
mod branching;
mod change;
mod claim;
mod disks;
mod ending;
mod hooks;
mod idle;
mod inbox;
mod journal;
mod memory;
mod power;
mod reach;
mod removal;
mod retries;
mod saving;
mod shutdown;
mod steps;
mod told;

use std::sync::Arc;
use std::time::Duration;

use microvm_ports::hypervisor::MachineExit;
use microvm_types::lifecycle::LifecycleEvent;
use microvm_types::vm::VmRecord;
use microvm_types::{Phase, StopReason};
use tokio::sync::{mpsc, watch};

use self::branching::Branching;
use self::idle::{IdleCare, Limit};
use self::inbox::Inbox;
use self::journal::Journal;
use self::power::Vm;
use self::reach::Reach;
use self::retries::Retries;
use self::told::Told;
use crate::events::Cause;
use crate::launch;
use crate::state::Reservation;
use crate::vm::activity::Activity;
use crate::vm::command::{Beginning, Command, Order};
use crate::vm::shared::Shared;
use crate::vm::view::Published;

/// Interval of looks for room: no event tells that a file system gets some.
const LOOK_EVERY: Duration = Duration::from_secs(2);

#[expect(clippy::large_enum_variant, reason = "one at a time, and taken apart at once")]
enum Wake {
    Order(Option<Order>),
    MachineExited(MachineExit),
    GuestClosed(String),
    ReachAgain,
    Restart,
    DiskFull,
    LookForRoom,
    LimitPassed(Limit),
    ServerEnding,
}

/// Decides what becomes of one VM.
pub(crate) struct VmActor {
    vm: Vm,
    idle: IdleCare,
    /// Its share of the limits of the host, until it is gone.
    reservation: Option<Reservation>,
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
        let clock = Arc::clone(&shared.ports.clock);
        let vm = Vm {
            journal: Journal::new(shared, record, publish, cause),
            inbox: Inbox::new(commands),
            reach: Reach::new(&clock),
            branching: Branching::default(),
            restarting: Retries::new(&clock),
            activity,
        };
        Self { vm, idle: IdleCare::default(), reservation: Some(reservation) }
    }

    /// Lives until the VM is gone or the server ends. A running machine goes on without its actor.
    pub(crate) async fn run(mut self, beginning: Beginning) {
        match beginning {
            Beginning::Create { start, planned, reply } => {
                let outcome = self.vm.create(start, *planned).await;
                // The creator learns of the failure when nothing is left of it, and can use the name again.
                if outcome.is_err() {
                    self.discard().await;
                }
                let _ = reply.send(outcome);
            }
            Beginning::Adopt => self.adopt().await,
        }
        // From here on what happens without an order is done by the server itself.
        self.vm.journal.cause = Cause::server();
        while self.vm.journal.phase() != Phase::Deleted {
            match self.wait().await {
                Wake::Order(Some(order)) => {
                    self.vm.journal.cause = order.cause;
                    self.handle(order.command).await;
                    self.vm.journal.cause = Cause::server();
                }
                Wake::Order(None) | Wake::ServerEnding => break,
                Wake::MachineExited(exit) => self.machine_exited(exit).await,
                Wake::GuestClosed(reason) => self.guest_closed(reason).await,
                Wake::ReachAgain => self.reach_again().await,
                Wake::Restart => self.restart().await,
                Wake::DiskFull => self.vm.disk_is_full().await,
                Wake::LookForRoom => self.vm.look_for_room().await,
                Wake::LimitPassed(limit) => self.limit_passed(limit).await,
            }
        }
        if self.vm.journal.phase() != Phase::Deleted
            && let Some(guest) = &self.vm.journal.guest
        {
            // The machine goes on; only the channel of this server is closed, so that the next one gets it.
            guest.close();
        }
    }

    async fn wait(&mut self) -> Wake {
        let Vm { journal, inbox, reach, restarting, activity, .. } = &mut self.vm;
        // Orders that had to wait come before anything that happened since.
        if let Some(order) = inbox.pending() {
            return Wake::Order(Some(order));
        }
        let exited = async {
            match &journal.machine {
                Some(machine) => launch::exited(machine.state()).await,
                None => std::future::pending().await,
            }
        };
        let closed = async {
            match &journal.guest {
                Some(guest) => match guest.closed().wait_for(Option::is_some).await {
                    Ok(reason) => reason.as_ref().map_or_else(String::new, ToString::to_string),
                    Err(_) => "its driver stopped".to_owned(),
                },
                None => std::future::pending().await,
            }
        };
        let full = async {
            match &journal.machine {
                Some(machine) if journal.phase() == Phase::Running => {
                    launch::disk_full(machine.state()).await
                }
                _ => std::future::pending().await,
            }
        };
        let waits_for_room = journal.waits_for_room();
        // A VM that cannot be used is not idle.
        let usable = journal.unreachable.is_none() && !waits_for_room;
        tokio::select! {
            biased;
            () = journal.shared.ending.cancelled() => Wake::ServerEnding,
            // Before orders: an order for a machine that is gone would fail with a misleading reason.
            exit = exited => Wake::MachineExited(exit),
            () = full => Wake::DiskFull,
            () = journal.shared.ports.clock.sleep(LOOK_EVERY), if waits_for_room => Wake::LookForRoom,
            order = inbox.next() => Wake::Order(order),
            reason = closed => Wake::GuestClosed(reason),
            () = reach.due(), if journal.unreachable.is_some() => Wake::ReachAgain,
            () = restarting.due() => Wake::Restart,
            limit = self.idle.passes(journal, activity, usable) => Wake::LimitPassed(limit),
        }
    }

    async fn handle(&mut self, command: Command) {
        let vm = &mut self.vm;
        match command {
            Command::Start { cold, reply } => {
                let _ = reply.send(shutdown::start(vm, cold).await);
            }
            Command::Stop { force, grace, reply } => {
                vm.restarting.cancel();
                let outcome = match vm.journal.admits(LifecycleEvent::Stop) {
                    Ok(true) => vm.stop(force, grace, StopReason::User).await,
                    // What could not be written back when it stopped is tried again. What a sleeping VM has is its own.
                    Ok(false) if vm.journal.record.life.asleep().is_none() => {
                        shutdown::end_for_good(&mut vm.journal).await
                    }
                    other => other.map(|_| ()),
                };
                let _ = reply.send(outcome);
            }
            Command::PlanShutdown { delay, force, reply } => {
                let outcome = shutdown::plan(vm, delay, force).await;
                self.idle.look_again();
                let _ = reply.send(outcome);
            }
            Command::Pause(reply) => {
                let outcome = match vm.journal.admits(LifecycleEvent::Pause) {
                    Ok(true) => hooks::pause(vm).await,
                    Ok(false) => {
                        vm.journal.record.life.stay_paused();
                        vm.journal.save(Told::NOTHING).await
                    }
                    Err(denied) => Err(denied),
                };
                let _ = reply.send(outcome);
            }
            Command::PutIntoPool(reply) => {
                let outcome = match vm.journal.admits(LifecycleEvent::Pooled) {
                    Ok(true) => vm.pause(|life| life.apply(LifecycleEvent::Pooled)).await,
                    other => other.map(|_| ()),
                };
                let _ = reply.send(outcome);
            }
            Command::Resume(reply) => {
                let outcome = match vm.journal.admits(LifecycleEvent::Resume) {
                    Ok(true) => hooks::resume(vm).await,
                    other => other.map(|_| ()),
                };
                let _ = reply.send(outcome);
            }
            Command::Wake(reply) => {
                let _ = reply.send(power::wake(vm).await);
            }
            Command::Delete { lost, reply } => {
                vm.restarting.cancel();
                let outcome = match vm.journal.admits(LifecycleEvent::Delete) {
                    Ok(true) => self.delete(lost).await,
                    other => other.map(|_| ()),
                };
                let _ = reply.send(outcome);
            }
            Command::ResizeMemory { memory_mib, reply } => {
                let _ = reply.send(vm.resize_memory(memory_mib).await);
            }
            Command::Fork { count, reply } => {
                let _ = reply.send(hooks::fork(vm, count).await);
            }
            Command::Snapshot { order, reply } => {
                let _ = reply.send(hooks::snapshot(vm, order).await);
            }
            Command::Hibernate(reply) => {
                let _ = reply.send(vm.hibernate(StopReason::User).await);
            }
            Command::Change { change, reply } => {
                let _ = reply.send(self.change(*change).await);
            }
            Command::MakeRoom => vm.make_room().await,
            Command::Rehearse(reply) => {
                let _ = reply.send(vm.reach.identify_again(&mut vm.journal).await);
            }
            Command::Claim { claim, reply } => {
                let _ = reply.send(self.claim(claim).await);
                // After the answer: the owner does not wait for a copy that the row makes needless unless the database is lost.
                journal::keep_owed(&mut self.vm.journal).await;
            }
            Command::Rollback { source, epoch, memory_now_mib, reply } => {
                let outcome = hooks::rollback(vm, source, epoch).await;
                if outcome.is_ok() {
                    vm.journal.record.memory_now_mib = memory_now_mib;
                    vm.journal.save_or_log(Told::NOTHING).await;
                }
                let _ = reply.send(outcome);
            }
        }
    }
}
