//! The way to a VM's guest: a VM that rests is woken on it.

use std::sync::Arc;

use microvm_types::Phase;
use microvm_types::vm::{Rest, VmRecord};
use tokio::sync::watch;

use super::command::Command;
use super::lease::{Boot, GuestLease, UseGuard};
use super::registry::VmHandle;
use super::shared::Shared;
use super::view::Published;
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
            let now = usable(&mut published, shared).await?;
            match now.guest {
                _ if now.gone() => return Err(ServiceError::UnknownVm(now.record.name.to_string())),
                Some(guest) if now.record.phase() == Phase::Running => {
                    let boot = Boot::of(&now.record);
                    return Ok(GuestLease::new(guest, boot, self.activity, Arc::clone(&shared.ports.clock)));
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
        Err(ServiceError::Overtaken("put to rest again and again"))
    }

    /// The record of the VM when it is not under way to where it can be used, which is waited for. Its actor sees to it that no
    /// such way lasts for ever.
    pub(crate) async fn settled(&self) -> Result<VmRecord, ServiceError> {
        let mut published = self.published.clone();
        let now = published.wait_for(|now| !now.is_under_way()).await;
        let record = now.map_err(|_| ServiceError::ShuttingDown)?.record.clone();
        if record.phase() == Phase::Deleted {
            return Err(ServiceError::UnknownVm(record.name.to_string()));
        }
        Ok(record)
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

/// The VM when it is not under way any more, and no channel to its agent is being opened.
///
/// # Errors
/// [`ServiceError::Unreachable`] if that channel is not open in the time that it may take.
async fn usable(
    published: &mut watch::Receiver<Published>,
    shared: &Shared,
) -> Result<Published, ServiceError> {
    let ended = |_| ServiceError::ShuttingDown;
    loop {
        // A boot takes as long as its template allows, and memory as long as the disk needs for it: its actor ends either.
        published.wait_for(|now| !now.is_under_way()).await.map_err(ended)?;
        let after = shared.settings.adopt_deadline;
        let opened = published.wait_for(|now| now.is_under_way() || !is_being_opened(now));
        let Ok(now) = tokio::time::timeout(after, opened).await else {
            let now = published.borrow().clone();
            // It may have changed at this very moment.
            if now.is_under_way() || !is_being_opened(&now) {
                continue;
            }
            let seconds = i64::try_from(after.as_secs()).unwrap_or(i64::MAX);
            let reason = "the channel to it is still being opened".to_owned();
            return Err(ServiceError::Unreachable { vm: now.record.name, seconds, reason });
        };
        let now = now.map_err(ended)?.clone();
        if !now.is_under_way() {
            return Ok(now);
        }
    }
}

/// True while a VM runs whose channel is opened, or was lost and is tried for the first time.
fn is_being_opened(now: &Published) -> bool {
    now.record.phase() == Phase::Running
        && now.guest.is_none()
        && now.unreachable.as_ref().is_none_or(|unreachable| !unreachable.tried)
}
