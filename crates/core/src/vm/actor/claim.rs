//! Handing a waiting VM out.

use microvm_types::lifecycle::LifecycleEvent;
use microvm_types::vm::{NewVm, PoolMember, VmRecord};
use microvm_types::{Name, Phase};

use super::VmActor;
use super::power::Vm;
use super::reach::connect_in_some_epoch;
use crate::error::ServiceError;
use crate::vm::command::Claim;

impl VmActor {
    /// Gives a waiting VM to whoever acquires it: name, identity, running. If any of it fails the VM is removed: what is half
    /// given away must not be handed to the next.
    pub(super) async fn claim(&mut self, claim: Claim) -> Result<(), ServiceError> {
        let journal = &self.vm.journal;
        let member = journal.record.pool.clone().filter(|_| journal.phase() == Phase::Pooled);
        let Some(PoolMember { pool, .. }) = member else {
            return Err(ServiceError::UnknownVm(journal.record.id.to_string()));
        };
        let (registry, id) = (&journal.shared.registry, &journal.record.id);
        // Before anything is changed: a name that is taken must not cost a warm VM.
        registry.reserve_name(id, &claim.name)?;
        registry.rename(id, &claim.name);
        let outcome = self.vm.hand_out(pool, claim).await;
        if let Err(error) = &outcome {
            tracing::warn!(vm = %self.vm.journal.record.id, %error, "a waiting VM could not be handed out, it is removed");
            // The pool makes another one; whoever asked gets an error or the next one.
            self.discard().await;
        }
        outcome
    }
}

impl Vm {
    /// Stores the VM as its new owner's while it wakes up: neither waits for the other, both are done when it is handed over.
    async fn hand_out(&mut self, pool: Name, claim: Claim) -> Result<(), ServiceError> {
        let Self { journal, reach, activity, .. } = self;
        let machine = journal.living()?;
        let now = journal.now_ms();
        activity.touch(now);
        let created_by = journal.cause.caller.to_string();
        // Another identity is another epoch; without a channel, opening one makes it.
        let epochs = u64::from(journal.guest.is_some());
        // Age, creator and limits begin with the new owner: nobody owned the VM while it waited.
        let change = |record: &mut VmRecord| {
            let Claim { name, vm: NewVm { labels, metadata, limits } } = claim;
            record.name = name;
            record.labels.extend(labels);
            record.created_by = created_by;
            record.metadata = metadata;
            record.limits = limits;
            record.pool = Some(PoolMember { pool, waiting: false });
            record.created_ms = now;
            record.last_stop = None;
            record.planned_shutdown = None;
            record.epoch += epochs;
            record.life.apply(LifecycleEvent::Claim)
        };
        let opened = journal.request_beside(change, async |journal, record| {
            let Some(guest) = journal.guest.clone() else {
                // It waited when the server was started again: the channel is opened now.
                machine.resume().await?;
                return Ok(Some(connect_in_some_epoch(&journal.shared, record, &machine).await?));
            };
            let identity = async { Ok(reach.identity(&journal.shared, record).await) };
            let (identity, ()) = futures::try_join!(identity, machine.resume())?;
            guest.expect_heartbeats(true);
            guest.identify(record.epoch, &identity).await?;
            Ok(None)
        });
        if let Some((guest, epoch)) = opened.await? {
            reach.connected(journal, guest, epoch);
            journal.publish();
        }
        Ok(())
    }
}
