//! The way to a VM's guest: a VM that rests is woken on it.

use std::sync::Arc;

use microvm_types::Phase;
use microvm_types::vm::Rest;

use super::command::Command;
use super::lease::{GuestLease, UseGuard};
use super::registry::VmHandle;
use super::shared::Shared;
use crate::error::ServiceError;

/// Most wakes for one request of a VM that goes to rest again and again.
const WAKE_TRIES: u32 = 3;

impl VmHandle {
    /// The guest of a running VM, also of one that waits in a pool. A VM whose channel is being opened again after a restart
    /// of the server is waited for.
    pub(crate) async fn guest(self, shared: &Shared) -> Result<GuestLease, ServiceError> {
        // Counts as use from before it is looked at whether the VM rests: it is not put to rest meanwhile.
        let _use = UseGuard::begin(&self.activity, &shared.ports.clock);
        let mut published = self.published.clone();
        for _ in 0..WAKE_TRIES {
            let woken = self.wake().await;
            let settled = published.wait_for(|now| {
                now.gone()
                    || now.guest.is_some()
                    || now.unreachable.as_ref().is_some_and(|unreachable| unreachable.tried)
                    || !matches!(now.record.phase(), Phase::Running | Phase::Starting)
            });
            let now = tokio::time::timeout(shared.settings.adopt_deadline, settled)
                .await
                .map_err(|_| ServiceError::NotRunning(Phase::Starting))?
                .map_err(|_| ServiceError::ShuttingDown)?
                .clone();
            match now.guest {
                _ if now.gone() => return Err(ServiceError::UnknownVm(now.record.name.to_string())),
                Some(guest) if now.record.phase() == Phase::Running => {
                    return Ok(GuestLease::new(guest, self.activity, Arc::clone(&shared.ports.clock)));
                }
                None if now.record.phase() == Phase::Running
                    && let Some(unreachable) = now.unreachable =>
                {
                    return Err(unreachable.error(&now.record.name, shared.ports.clock.now_ms()));
                }
                None | Some(_)
                    if now.record.phase() == Phase::Paused
                        && now.record.life.rest() == Some(&Rest::DiskFull) =>
                {
                    return Err(ServiceError::NoRoom);
                }
                // It went to rest, or from one rest into another, while this was asked.
                _ if now.record.life.rest().is_some() && !matches!(woken, Err(ServiceError::Storage(_))) => {}
                _ => {
                    woken?;
                    return Err(ServiceError::NotRunning(now.record.phase()));
                }
            }
        }
        let phase = self.published.borrow().record.phase();
        Err(ServiceError::NotRunning(phase))
    }

    /// Wakes a VM that rests until somebody wants it.
    async fn wake(&self) -> Result<(), ServiceError> {
        let rests = {
            let now = self.published.borrow();
            matches!(
                (now.record.life.rest(), now.record.phase()),
                (Some(Rest::Paused), Phase::Paused) | (Some(Rest::Asleep { .. }), Phase::Hibernated)
            )
        };
        if rests { self.ask(Command::Wake).await } else { Ok(()) }
    }
}
