//! Removing a VM with all that belongs to it.

use std::time::Duration;

use microvm_ports::storage::LostDisks;
use microvm_ports::{StateError, StorageError};
use microvm_types::lifecycle::LifecycleEvent;
use microvm_types::template::HookPoint;
use microvm_types::vm::VmRecord;
use microvm_types::{Phase, StopReason};

use super::disks::write_back;
use super::journal::Journal;
use super::power::Vm;
use super::told::Told;
use super::{VmActor, memory};
use crate::error::ServiceError;
use crate::vm::volumes;

impl VmActor {
    /// Removes every trace of a VM whose creation failed.
    pub(super) async fn discard(&mut self) {
        let journal = &mut self.vm.journal;
        // Not stored: the row goes next, or the next server undoes the creation. An interrupted removal goes on.
        if journal.phase() != Phase::Deleting {
            journal.note_unstored(LifecycleEvent::Delete);
        }
        if let Err(error) = self.erase(LostDisks::GiveUpRemoved, None).await {
            tracing::error!(vm = %self.vm.journal.record.id, %error, "what a failed creation left could not be removed");
        }
    }

    /// Removes the VM unless a hook refuses. `lost`: what becomes of writes to disks of the user's that cannot take them.
    pub(super) async fn delete(&mut self, lost: LostDisks) -> Result<(), ServiceError> {
        self.vm.journal.hook(HookPoint::BeforeDelete).await?;
        self.remove(lost, Told::NOTHING).await
    }

    /// Removes a VM that is to go by itself, for the reason that is `told`. Hooks are told, and not asked: there is nobody to read a
    /// refusal.
    pub(super) async fn erase_ephemeral(&mut self, told: Told) {
        let _ = self.vm.journal.hook(HookPoint::BeforeDelete).await;
        if let Err(error) = self.remove(LostDisks::GiveUpRemoved, told).await {
            tracing::warn!(vm = %self.vm.journal.record.id, %error, "an ephemeral VM could not be deleted");
        }
    }

    async fn remove(&mut self, lost: LostDisks, told: Told) -> Result<(), ServiceError> {
        let grace = grace_for_volumes(&mut self.vm).await;
        // Whether or not this can be stored (the disk may be full, which is why it is deleted), the VM goes.
        self.vm.journal.note(LifecycleEvent::Delete, told).await;
        self.erase(lost, grace).await?;
        let _ = self.vm.journal.hook(HookPoint::AfterDelete).await;
        Ok(())
    }

    /// Ends the machine, by its agent if a `grace` is given, and removes files, row and name, in this order, so that what is left after a crash at any
    /// point is found again. If something cannot be removed the VM stays, failed, and can be deleted again.
    async fn erase(&mut self, lost: LostDisks, grace: Option<Duration>) -> Result<(), ServiceError> {
        // Without a grace by force: whoever deletes a VM does not wait for its guest.
        let ended = self.vm.end_machine(grace).await;
        let journal = &mut self.vm.journal;
        let written_back = match &ended {
            Ok(()) => write_back(journal, lost).await.map_err(|error| kept_by_disk(&journal.record, error)),
            Err(_) => Ok(()),
        };
        // While a machine may live, or a disk of the user waits for its content, the VM must be able to go on.
        if ended.is_ok() && written_back.is_ok() {
            let slept = journal.record.life.give_up_sleep();
            memory::end(&journal.shared, &journal.record, slept).await;
        }
        let (id, ports) = (journal.record.id.clone(), journal.shared.ports.clone());
        let removed = async {
            // The files of a machine that may live stay with it.
            ended?;
            written_back?;
            ports.vm_storage.remove_vm_files(&id).await?;
            match ports.store.delete_vm(&id).await {
                // What it leaves behind makes room, but is usually removed later.
                Err(StateError::Full { .. }) => {
                    ports.snapshots.collect_snapshot_garbage(0).await?;
                    Ok::<_, ServiceError>(ports.store.delete_vm(&id).await?)
                }
                other => Ok(other?),
            }
        };
        if let Err(error) = removed.await {
            let reason = format!("it could not be deleted: {error}");
            let told = Told::stop_with(StopReason::NotDeleted, reason);
            journal.note(LifecycleEvent::NotDeleted, told).await;
            return Err(error);
        }
        // The name is free from here on; the row that could claim it again is gone.
        journal.shared.registry.remove(&id);
        // Before whoever deleted it has the answer: the place is free for the next one.
        self.reservation = None;
        if let Some(member) = &journal.record.pool {
            journal.shared.pools.vm_gone(&journal.record.tenant, &member.pool);
        }
        // Layers that only this VM used are unreferenced now: wake the janitor.
        journal.shared.litter.notify_one();
        journal.note_unstored(LifecycleEvent::Deleted);
        self.vm.inbox.close();
        Ok(())
    }
}

/// Longest time that a VM which is to go may take to write what it has in memory to named volumes; `None` if it writes to none.
/// One that rests is woken for it.
async fn grace_for_volumes(vm: &mut Vm) -> Option<Duration> {
    let Journal { record, shared, .. } = &vm.journal;
    let grace = shared.settings.stop_grace;
    if !volumes::uses(record).iter().any(|one| one.writes) {
        return None;
    }
    let awake = match record.phase() {
        Phase::Running => Ok(()),
        // It would stop at once again.
        Phase::Paused if vm.journal.waits_for_room() => {
            tracing::warn!(vm = %record.id, "the host's disk is full, so it cannot go on: what it had not written to its volumes is lost, as after a power cut");
            return None;
        }
        Phase::Paused => vm.resume().await,
        Phase::Hibernated => vm.start(false).await,
        _ => return None,
    };
    match awake {
        Ok(()) => Some(grace),
        Err(error) => {
            tracing::warn!(vm = %vm.journal.record.id, %error, "it does not wake: what it had not written to its volumes is lost, as after a power cut");
            None
        }
    }
}

/// The VM stays because a disk of the user's cannot take what it wrote: who deletes it may give that up.
fn kept_by_disk(record: &VmRecord, error: ServiceError) -> ServiceError {
    match error {
        ServiceError::Storage(cause @ StorageError::NotWrittenBack { .. }) => {
            ServiceError::KeptByDisk { vm: record.name.clone(), cause }
        }
        other => other,
    }
}
