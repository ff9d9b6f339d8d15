//! Handing a waiting VM out.

use microvm_ports::GuestError;
use microvm_ports::guest::CloseReason;
use microvm_types::Phase;
use microvm_types::lifecycle::{LifecycleEvent, Work};
use microvm_types::vm::PoolMember;

use super::VmActor;
use crate::error::ServiceError;
use crate::vm::command::Claim;

impl VmActor {
    /// Makes a waiting VM somebody's own: name, identity, running. If any of it fails the VM is removed: it was nobody's,
    /// and what is half somebody's must not be handed to the next.
    pub(super) async fn claim(&mut self, claim: Claim) -> Result<(), ServiceError> {
        let pools = self.record.pool.clone().filter(|_| self.record.phase() == Phase::Pooled);
        let Some(PoolMember { pool, .. }) = pools else {
            return Err(ServiceError::UnknownVm(self.record.id.to_string()));
        };
        self.shared.registry.rename(&self.record.id, &self.record.name, &claim.name)?;
        let now = self.shared.ports.clock.now_ms();
        self.record.name = claim.name;
        self.record.labels.extend(claim.labels);
        self.record.created_by = self.cause.caller.to_string();
        self.record.metadata = claim.metadata;
        self.record.limits = claim.limits;
        self.record.pool = Some(PoolMember { pool, waiting: false });
        (self.record.created_ms, self.record.updated_ms) = (now, now);
        let outcome = self.wake_as_its_own(now).await;
        if let Err(error) = &outcome {
            tracing::warn!(vm = %self.record.id, %error, "a waiting VM could not be handed out, it is removed");
            self.discard().await;
        }
        outcome
    }

    /// Gives a running VM that will wait its identity once more, as a claim does: an emulated guest translates a piece of
    /// code when it first gets there, and the first claim's answer would take 2 ms longer. The pause that follows stores
    /// the epoch.
    pub(super) async fn rehearse(&mut self) -> Result<(), ServiceError> {
        self.permitted(Work::Rehearse)?;
        let guest = self.guest.clone().ok_or(GuestError::Closed(CloseReason::Local))?;
        self.record.epoch += 1;
        let identity = self.own_identity().await;
        Ok(guest.identify(self.record.epoch, &identity).await?)
    }

    /// Stored while it wakes up: neither waits for the other, both are done when it is handed over.
    async fn wake_as_its_own(&mut self, now: i64) -> Result<(), ServiceError> {
        let machine = self.living()?;
        let connected = self.guest.clone();
        let mut record = self.record.clone();
        // Another identity is another epoch; without a channel, opening one makes it.
        record.epoch += u64::from(connected.is_some());
        let epoch = record.epoch;
        record.life.apply(LifecycleEvent::Claim)?;
        let store = std::sync::Arc::clone(&self.shared.ports.store);
        let stored = async { Ok::<_, ServiceError>(store.update_vm(&record).await?) };
        let woken = async {
            match connected {
                Some(guest) => {
                    let identity = async { Ok(self.own_identity().await) };
                    let (identity, ()) = futures::try_join!(identity, machine.resume())?;
                    guest.expect_heartbeats(true);
                    guest.identify(epoch, &identity).await?;
                    Ok::<_, ServiceError>(())
                }
                // It waited when the server was started again: the channel is opened now.
                None => {
                    machine.resume().await?;
                    Ok(self.connect_again(&machine).await?)
                }
            }
        };
        let (stored, woken) = futures::join!(stored, woken);
        woken?;
        stored?;
        let opened = self.record.epoch;
        self.record = record;
        self.record.epoch = epoch.max(opened);
        self.activity.touch(now);
        self.publish_now();
        self.tell(None);
        Ok(())
    }
}
