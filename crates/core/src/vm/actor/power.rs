//! Machine and guest of one VM: pausing, resuming, hibernating and resizing them.

use std::sync::Arc;

use microvm_ports::hypervisor::MachineState;
use microvm_ports::{MachineError, Progress};
use microvm_types::lifecycle::{Denied, LifecycleEvent, Work};
use microvm_types::snapshot::SnapshotPurpose;
use microvm_types::vm::{Rest, VmRecord};
use microvm_types::{LastStop, Life, Phase, SnapshotId, StopReason};
use tokio::sync::oneshot;

use super::branching::{self, Branching};
use super::inbox::Inbox;
use super::journal::{Journal, request_record};
use super::memory;
use super::reach::Reach;
use super::retries::Retries;
use super::saving;
use super::told::Told;
use crate::error::{Bound, ServiceError};
use crate::launch::shares::check_whole;
use crate::undo;
use crate::vm::activity::Activity;
use crate::vm::command::SnapshotOrder;
use crate::vm::shared::Room;

/// Least memory that a running guest is left with, in MiB.
const LEAST_MEMORY_MIB: u32 = 64;

/// The part of its machine's memory that a guest is left with at the least, as a divisor: its kernel keeps notes of every page of
/// the machine, a 64th of them all, whatever the guest has.
const LEAST_PART: u32 = 16;

/// One VM in the hands of its actor: what is known of it, and all that its machine can be made to do. Nothing here decides
/// when.
pub(super) struct Vm {
    pub(super) journal: Journal,
    pub(super) inbox: Inbox,
    pub(super) reach: Reach,
    pub(super) branching: Branching,
    /// Starts that the guest asks for by a reset.
    pub(super) restarting: Retries,
    pub(super) activity: Arc<Activity>,
}

impl Vm {
    /// Stops the processors; `change` says what the VM is then.
    pub(super) async fn pause(
        &mut self,
        change: impl FnOnce(&mut Life) -> Result<(), Denied>,
    ) -> Result<(), ServiceError> {
        let machine = self.journal.living()?;
        // Before the processors stop: a pause must not look like an agent that was lost.
        self.journal.expect_heartbeats(false);
        if let Err(error) = machine.pause().await {
            // One that answers too late still stops; what follows it lets it go on.
            let _ = machine.resume().await;
            self.journal.expect_heartbeats(true);
            return Err(error.into());
        }
        let requested = self.journal.request_by(change).await;
        if requested.is_err() {
            // Stored states and processors must agree: what is noted as running runs.
            let _ = machine.resume().await;
            self.journal.expect_heartbeats(true);
        }
        requested
    }

    /// Pauses until somebody wants the VM.
    pub(super) async fn pause_for_rest(&mut self) -> Result<(), ServiceError> {
        let paused = self.pause(|life| life.pause_because(Rest::Paused)).await;
        if paused.is_ok() && self.activity.idle_since_ms().is_none() {
            // Somebody came at this very moment, and may have seen it awake.
            return self.resume().await;
        }
        paused
    }

    /// Lets the processors of a paused VM run.
    pub(super) async fn resume(&mut self) -> Result<(), ServiceError> {
        let Self { journal, reach, activity, .. } = self;
        let machine = journal.living()?;
        machine.resume().await?;
        if journal.guest.is_some() {
            journal.expect_heartbeats(true);
        } else if let Err(error) = reach.connect(journal, &machine).await {
            // Paused when the server restarted, so the channel was opened only now. Its processors run: that is noted, and
            // what is missing is its agent.
            journal.request(LifecycleEvent::Resume).await?;
            reach.lost(journal, format!("the agent did not answer after the resume: {error}"));
            return Err(error.into());
        }
        // A guest whose clock stood still hands out expired certificates and wrong timers until it is told.
        reach.tell_time(journal).await;
        activity.touch(journal.now_ms());
        let requested = journal.request(LifecycleEvent::Resume).await;
        if requested.is_err() {
            journal.expect_heartbeats(false);
            let _ = machine.pause().await;
        }
        requested
    }

    /// Stores memory and processor state on disk and ends the machine. The next start or request goes on where it was.
    pub(super) async fn hibernate(&mut self, reason: StopReason) -> Result<(), ServiceError> {
        let journal = &mut self.journal;
        if journal.phase() == Phase::Hibernated {
            return Ok(());
        }
        journal.permits(Work::Hibernate)?;
        // A shared folder belongs to one machine: what the guest has open there cannot be saved with it.
        check_whole(&journal.record.template)?;
        let id = journal.shared.new_snapshot_id();
        let (taken, _) = oneshot::channel();
        let order = SnapshotOrder {
            // Users never see this name: snapshots of sleeping VMs are not listed.
            name: format!("sleep-{id}").parse().map_err(|error: microvm_types::NameError| {
                ServiceError::Invalid { field: "name", reason: error.to_string() }
            })?,
            description: format!("the VM {} asleep", journal.record.name),
            purpose: SnapshotPurpose::Hibernation,
            full: false,
            stay_paused: true,
            progress: Progress::ignored(),
            taken,
            id: id.clone(),
        };
        journal.expect_heartbeats(false);
        // Nobody gets a guest whose machine is going to pause; who asks now waits for how it ends.
        journal.hide_guest();
        if let Err(error) = self.fall_asleep(order, &id, reason).await {
            let has_memory = self.stay_awake().await;
            let journal = &mut self.journal;
            let is_whole = journal.shared.snapshots.by_id(&id).is_ok();
            if has_memory || !is_whole || !matches!(journal.phase(), Phase::Running | Phase::Paused) {
                // What is on disk goes only where the memory that was saved is still in a machine, which may have run since.
                if has_memory {
                    memory::end(&journal.shared, &journal.record, Some(id)).await;
                }
                journal.publish();
                return Err(error);
            }
            tracing::warn!(vm = %journal.record.id, %error, "its machine has ended, and its memory is whole on disk: it hibernates");
            journal.note_by(|life| life.fall_asleep(id), Told::stop(reason)).await;
        }
        // The record says already that it sleeps: a VMM that does not end is swept before the next start.
        self.end_machine_or_log().await;
        self.journal.note(LifecycleEvent::Hibernated, Told::stop(reason)).await;
        Ok(())
    }

    /// Writes memory and processor state to disk and notes that the VM sleeps on them. If that fails the machine goes on; one
    /// that has ended with its save is launched again from what it saved.
    async fn fall_asleep(
        &mut self,
        order: SnapshotOrder,
        id: &SnapshotId,
        reason: StopReason,
    ) -> Result<(), ServiceError> {
        let (branched, record) = branching::take_for(&self.journal, &order).await?;
        // Kept only where the VMM ended with its save: the one way back is what it saved.
        let saved = branched.files.branch.ended.then(|| branched.clone());
        match (branching::write(&self.journal, order, branched, record).await, saved) {
            (Ok(written), saved) => {
                // Known before the phase is stored: whoever wakes the VM at once finds it.
                let (_, asleep) = undo::keep(written);
                self.journal.shared.snapshots.insert(asleep);
                if saved.is_none() {
                    let at_ms = self.journal.now_ms();
                    let sleep = |record: &mut VmRecord| {
                        record.life.fall_asleep(id.clone())?;
                        record.last_stop = Some(LastStop { reason, at_ms, detail: None });
                        Ok(())
                    };
                    return request_record(&mut self.journal, sleep).await;
                }
                // Its machine is gone, and what it saved is whole: it sleeps, whether or not that can be stored.
                self.journal.note_by(|life| life.fall_asleep(id.clone()), Told::stop(reason)).await;
                Ok(())
            }
            (Err(error), None) => Err(error),
            (Err(error), Some(mut saved)) => {
                if let Err(failed) = saving::go_on_after(self, &mut saved).await {
                    tracing::error!(vm = %self.journal.record.id, %failed, "it ended with its save, and does not go on from it");
                }
                Err(error)
            }
        }
    }

    /// Lets a machine that was to hibernate and does not go on. True if there is one, with the memory of the VM.
    async fn stay_awake(&mut self) -> bool {
        let Self { journal, reach, .. } = self;
        let Some(machine) = journal.machine.clone() else { return false };
        if matches!(*machine.state().borrow(), MachineState::Exited(_)) {
            return false;
        }
        if journal.phase() != Phase::Running {
            return true;
        }
        match machine.resume().await {
            Ok(()) => {
                journal.expect_heartbeats(true);
                reach.tell_time(journal).await;
            }
            Err(MachineError::Exited(_)) => return false,
            Err(error) => {
                tracing::error!(vm = %journal.record.id, %error, "it does not go on after it could not be hibernated");
                // An order that is answered too late is carried out all the same: it stands still for sure only once a
                // pause is confirmed. Shown as what it is; the next request tries again.
                if machine.pause().await.is_ok() {
                    let told =
                        Told::words(format!("it does not go on after it could not be hibernated: {error}"));
                    journal.note_by(|life| life.pause_because(Rest::Paused), told).await;
                } else {
                    journal.expect_heartbeats(true);
                }
            }
        }
        true
    }

    /// Gives a running guest less memory, or more, up to what its machine has; in MiB.
    pub(super) async fn resize_memory(&mut self, memory_mib: u32) -> Result<(), ServiceError> {
        self.journal.permits(Work::ResizeMemory)?;
        // A balloon takes memory from the guest and gives it back; it cannot add to what the machine began with.
        let limit = self.journal.record.template.machine_memory_mib();
        if memory_mib > limit {
            let (asked, limit) = (memory_mib.into(), limit.into());
            let bound = Bound::Creation;
            return Err(ServiceError::OverLimit { field: "memory_mib", asked, limit, bound });
        }
        let least = LEAST_MEMORY_MIB.max(limit / LEAST_PART);
        // What it has is no new size: an earlier version may have allowed less.
        if memory_mib < least && self.journal.record.memory_now_mib != Some(memory_mib) {
            return Err(ServiceError::Invalid {
                field: "memory_mib",
                reason: format!(
                    "{memory_mib} MiB is too little for a running guest of this machine, at least {least} MiB is needed"
                ),
            });
        }
        if self.journal.phase() == Phase::Hibernated {
            // Nobody is woken for what cannot be done.
            let driver = self.journal.shared.ports.hypervisor(&self.journal.record.template)?;
            if !driver.probe().await?.abilities.balloon {
                return Err(ServiceError::NoBalloon);
            }
        }
        let woken = wake_hibernated(self).await?;
        let resized = resize_now(self, memory_mib).await;
        sleep_again(self, woken, resized).await
    }

    /// Notes that the VMM has stopped the VM because one of its writes found no space.
    pub(super) async fn disk_is_full(&mut self) {
        let Self { journal, reach, .. } = self;
        journal.expect_heartbeats(false);
        tracing::warn!(vm = %journal.record.id, "the host's disk is full: the VM is paused until there is room");
        reach.settled(journal);
        // Noted, not requested: that it cannot be stored on the same disk does not make it run.
        let told = Told::words("the disk of the host is full");
        journal.note_by(|life| life.pause_because(Rest::DiskFull), told).await;
    }

    /// Pauses a VM that grows before it takes the last room from all others.
    pub(super) async fn make_room(&mut self) {
        if self.journal.phase() != Phase::Running {
            return;
        }
        let Some(machine) = self.journal.machine.clone() else { return };
        // The VMM stops by itself only when a write has failed; by then other VMs have no room either.
        match machine.pause().await {
            Ok(()) => self.disk_is_full().await,
            Err(error) => {
                tracing::warn!(vm = %self.journal.record.id, %error, "a VM that grows could not be paused, and the disk is nearly full");
                let _ = machine.resume().await;
            }
        }
    }

    /// Resumes a VM that waits for room if there is some.
    pub(super) async fn look_for_room(&mut self) {
        match self.journal.shared.room().await {
            Ok(Room::Short) => {}
            Ok(Room::Enough | Room::Nearly) => match self.resume().await {
                Ok(()) => tracing::info!(vm = %self.journal.record.id, "there is room again: the VM goes on"),
                Err(error) => {
                    tracing::warn!(vm = %self.journal.record.id, %error, "it could not go on although there is room");
                }
            },
            Err(error) => tracing::warn!(%error, "the free space cannot be told"),
        }
    }
}

/// Tells the balloon of a machine, and notes what the guest has now.
async fn resize_now(vm: &mut Vm, memory_mib: u32) -> Result<(), ServiceError> {
    let machine = vm.journal.living()?;
    machine.balloon().ok_or(ServiceError::NoBalloon)?.resize(memory_mib).await?;
    let limit = vm.journal.record.template.machine_memory_mib();
    // Absent where the guest has all of it, so that records of earlier versions say the same.
    vm.journal.record.memory_now_mib = (memory_mib < limit).then_some(memory_mib);
    vm.journal.save(Told::NOTHING).await
}

/// Wakes a VM that hibernates, for work that needs its machine. True if it did.
pub(super) async fn wake_hibernated(vm: &mut Vm) -> Result<bool, ServiceError> {
    let is_asleep = vm.journal.phase() == Phase::Hibernated;
    if is_asleep {
        vm.start(false).await?;
    }
    Ok(is_asleep)
}

/// Lets a VM that was woken for work which failed hibernate again, unless somebody uses it by now.
pub(super) async fn sleep_again<T>(
    vm: &mut Vm,
    woken: bool,
    worked: Result<T, ServiceError>,
) -> Result<T, ServiceError> {
    // As before it was woken.
    let reason = vm.journal.record.last_stop.as_ref().map_or(StopReason::Unknown, |stop| stop.reason);
    if woken
        && worked.is_err()
        && vm.activity.idle_since_ms().is_some()
        && let Err(error) = vm.hibernate(reason).await
    {
        tracing::warn!(vm = %vm.journal.record.id, %error, "it was woken for work that failed, and does not hibernate again");
    }
    worked
}

/// Lets a VM that rests until somebody wants it go on. One that was paused by hand since that was asked for stays paused.
pub(super) async fn wake(vm: &mut Vm) -> Result<(), ServiceError> {
    match (vm.journal.record.life.rest(), vm.journal.phase()) {
        (Some(Rest::Paused), Phase::Paused) => vm.resume().await,
        (Some(Rest::Asleep { .. }), Phase::Hibernated) => vm.start(false).await,
        _ => Ok(()),
    }
}
