//! Removing a VM with all that belongs to it.

use microvm_ports::StateError;
use microvm_types::Phase;
use microvm_types::lifecycle::LifecycleEvent;
use microvm_types::template::HookPoint;

use super::VmActor;
use crate::error::ServiceError;
use crate::vm::command::Command;
use crate::vm::hooks;

impl VmActor {
    /// Removes every trace of a VM whose creation failed.
    pub(super) async fn discard(&mut self) {
        // Not stored: the row goes next, or the next server undoes the creation. An interrupted removal goes on.
        if self.record.phase() != Phase::Deleting
            && let Err(denied) = self.record.life.apply(LifecycleEvent::Delete)
        {
            tracing::error!(vm = %self.record.id, %denied, "a fact that the table does not know");
        }
        self.tell(None);
        if let Err(error) = self.erase().await {
            tracing::error!(vm = %self.record.id, %error, "what a failed creation left could not be removed");
        }
    }

    /// A stop overtook its start.
    pub(super) async fn stopped_by_force(&mut self) {
        self.record.machine = None;
        self.note(self.record.life.ended(), None).await;
    }

    pub(super) async fn delete(&mut self) -> Result<(), ServiceError> {
        hooks::run(&self.shared.ports, &self.record, HookPoint::BeforeDelete).await?;
        self.remove().await
    }

    /// Removes the VM whatever hooks say.
    pub(super) async fn remove(&mut self) -> Result<(), ServiceError> {
        // Whether or not this can be stored (the disk may be full, which is why it is deleted), the VM goes.
        self.note(LifecycleEvent::Delete, None).await;
        self.erase().await?;
        let _ = hooks::run(&self.shared.ports, &self.record, HookPoint::AfterDelete).await;
        Ok(())
    }

    /// Ends the machine and removes files, row and name, in this order, so that what is left after a crash at any
    /// point is found again. If something cannot be removed the VM stays, failed, and can be deleted again.
    pub(super) async fn erase(&mut self) -> Result<(), ServiceError> {
        let ended = self.end_machine(None).await;
        let (id, ports) = (self.record.id.clone(), self.shared.ports.clone());
        let written_back = match &ended {
            Ok(()) => self.write_back_or_give_up(true).await,
            Err(_) => Ok(()),
        };
        if ended.is_ok() && written_back.is_ok() {
            let slept = self.record.life.give_up_sleep();
            self.end_sleep(slept).await;
        }
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
            self.note(LifecycleEvent::NotDeleted, Some(format!("it could not be deleted: {error}"))).await;
            return Err(error);
        }
        self.shared.registry.remove(&id, &self.record.name);
        // Before whoever deleted it has the answer: the place is free for the next one.
        self.reservation = None;
        if let Some(member) = &self.record.pool {
            self.shared.pools.vm_gone(&self.record.tenant, &member.pool);
        }
        self.shared.litter.notify_one();
        if let Err(denied) = self.record.life.apply(LifecycleEvent::Deleted) {
            tracing::error!(vm = %self.record.id, %denied, "a fact that the table does not know");
        }
        self.publish_now();
        self.tell(None);
        self.commands.close();
        while let Some(order) = self.pending.pop_front().or_else(|| self.commands.try_recv().ok()) {
            // Whoever waits for another command is told that the VM is gone when its reply is dropped.
            if let Command::Delete(reply) = order.command {
                let _ = reply.send(Ok(()));
            }
        }
        Ok(())
    }
}
