//! Idle and lifetime limits.

use std::time::Duration;

use microvm_ports::GuestError;
use microvm_types::lifecycle::LifecycleEvent;
use microvm_types::template::HookPoint;
use microvm_types::vm::{Rest, VmRecord};
use microvm_types::{ErrorKind, Phase};

use super::VmActor;
use crate::error::ServiceError;
use crate::vm::activity::Activity;
use crate::vm::hooks;
use crate::vm::shared::Shared;

/// Rest after a limit could not be carried out.
const LIMIT_RETRY: Duration = Duration::from_secs(30);

/// Which limit passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Limit {
    /// It has existed for long enough.
    Lifetime,
    /// Nobody has used it for long enough to end it.
    Idle,
    /// The same, to let it stand still.
    Doze,
    /// The same, to put it to disk.
    Sleep,
}

impl VmActor {
    pub(super) async fn limit_passed(&mut self, limit: Limit) {
        // Who stands still or sleeps goes on with everything later; only an end loses work.
        if limit == Limit::Idle {
            let uses = self.activity.uses();
            match self.has_detached_work().await {
                // Somebody came while it was asked, and may have seen it awake.
                Ok(false) if self.is_wanted_since(uses) => return,
                Ok(false) => {}
                Ok(true) => return self.activity.touch(self.shared.ports.clock.now_ms()),
                Err(error) => {
                    tracing::warn!(vm = %self.record.id, %error, "whether it has detached work is not known: it is not ended for being idle");
                    self.limits_rest_until = tokio::time::Instant::now() + LIMIT_RETRY;
                    return;
                }
            }
        }
        tracing::info!(vm = %self.record.id, ?limit, "limit passed");
        if let Limit::Doze | Limit::Sleep = limit {
            let rested = if limit == Limit::Doze { self.doze().await } else { self.hibernate().await };
            if let Err(error) = rested {
                tracing::warn!(vm = %self.record.id, %error, "it could not be put to rest");
                self.limits_rest_until = tokio::time::Instant::now() + LIMIT_RETRY;
            }
            return;
        }
        if self.record.limits.ephemeral {
            self.erase_ephemeral().await;
        } else if let Err(error) = self.stop(false, self.shared.settings.stop_grace).await {
            tracing::warn!(vm = %self.record.id, %error, "could not be stopped at its limit");
        }
        // If it is still there something refused; it is tried again, but not at once.
        self.limits_rest_until = tokio::time::Instant::now() + LIMIT_RETRY;
    }

    /// Whether a process lives that somebody started to live on by itself (start commands are servers for requests, which
    /// count themselves). Asked once in an idle time. A VM that stands still or sleeps is woken for the question; if it has
    /// such work it goes on, and rests again by its own limits, but for one that was paused by hand.
    ///
    /// # Errors
    /// If that is not known: the VM does not wake, or its agent does not tell.
    async fn has_detached_work(&mut self) -> Result<bool, ServiceError> {
        let by_hand = self.record.phase() == Phase::Paused && self.record.life.rest().is_none();
        let awake = match self.record.phase() {
            Phase::Running => Ok(()),
            Phase::Paused => self.resume().await,
            // One whose last wake failed still has its memory on disk.
            Phase::Hibernated | Phase::Failed if self.record.life.asleep().is_some() => {
                self.start(false).await
            }
            // It has no processes.
            _ => return Ok(false),
        };
        let has_work = match awake {
            Ok(()) => self.lists_detached_work().await,
            Err(error) => Err(error),
        };
        // A resume whose agent does not answer lets the processors go on all the same.
        if by_hand && !matches!(has_work, Ok(false)) && self.record.phase() == Phase::Running {
            self.pause(|life| life.apply(LifecycleEvent::Pause)).await?;
        }
        has_work
    }

    /// Whether somebody uses the VM, has used it since there had been so many `uses`, or waits for it.
    fn is_wanted_since(&self, uses: u64) -> bool {
        self.activity.idle_since_ms().is_none()
            || self.activity.uses() != uses
            || !self.pending.is_empty()
            || !self.commands.is_empty()
    }

    async fn lists_detached_work(&self) -> Result<bool, ServiceError> {
        let guest = self.guest.as_ref().ok_or_else(|| ServiceError::NotRunning(self.record.phase()))?;
        match guest.processes().await {
            Ok(processes) => Ok(processes
                .iter()
                .any(|process| process.detached && process.exit.is_none() && !process.id.is_start_command())),
            // An agent of an earlier version has no such list, and no detached work that anybody could ask for.
            Err(GuestError::Refused { kind: ErrorKind::Unsupported, .. }) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Hooks are told, and not asked: what was to be deleted by itself has nobody to read a refusal.
    pub(super) async fn erase_ephemeral(&mut self) {
        let _ = hooks::run(&self.shared.ports, &self.record, HookPoint::BeforeDelete).await;
        if let Err(error) = self.remove().await {
            tracing::warn!(vm = %self.record.id, %error, "an ephemeral VM could not be deleted");
        }
    }
}

/// Waits until the VM's idle or lifetime limit passes; for ever if it has none. One that is not `usable` (its agent does
/// not answer, it waits for room on the disk) is not idle because nobody uses it.
pub(super) async fn limit_passes(
    shared: &Shared,
    record: &VmRecord,
    activity: &Activity,
    usable: bool,
) -> Limit {
    let clock = &shared.ports.clock;
    let left = |since_ms: i64, seconds: u64| {
        let end = since_ms.saturating_add(i64::try_from(seconds).unwrap_or(i64::MAX).saturating_mul(1_000));
        let left = Duration::from_millis(u64::try_from(end.saturating_sub(clock.now_ms())).unwrap_or(0));
        // A clock that was set back makes nothing last longer than its limit from now.
        left.min(Duration::from_secs(seconds))
    };
    // Only what has a machine costs anything; an ephemeral VM is removed even when it is stopped.
    let applies = record.limits.ephemeral || matches!(record.phase(), Phase::Running | Phase::Paused);
    let lifetime = async {
        match record.limits.lifetime_seconds {
            Some(seconds) if applies => tokio::time::sleep(left(record.created_ms, seconds)).await,
            _ => std::future::pending().await,
        }
    };
    let idle = async |seconds: Option<u64>, applies: bool| {
        let Some(seconds) = seconds.filter(|_| applies && usable) else {
            return std::future::pending().await;
        };
        loop {
            activity.idle().await;
            let left = left(activity.idle_at_most_since(clock.now_ms()), seconds);
            if left.is_zero() {
                return;
            }
            tokio::time::sleep(left).await;
        }
    };
    let limits = &record.limits;
    let runs = record.phase() == Phase::Running;
    // What somebody paused by hand stays as it is; what dozes may go to sleep.
    let may_sleep = runs || (record.phase() == Phase::Paused && record.life.rest() == Some(&Rest::Paused));
    tokio::select! {
        () = lifetime => Limit::Lifetime,
        () = idle(limits.idle_seconds, applies) => Limit::Idle,
        () = idle(limits.hibernate_seconds, may_sleep) => Limit::Sleep,
        () = idle(limits.pause_seconds, runs) => Limit::Doze,
    }
}
