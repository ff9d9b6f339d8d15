//! Care for VMs that nobody uses: idle and lifetime limits.

use std::time::Duration;

use microvm_ports::{Clock, GuestError};
use microvm_types::lifecycle::LifecycleEvent;
use microvm_types::vm::Rest;
use microvm_types::{ErrorKind, Phase, StopReason};
use tokio::time::Instant;

use super::VmActor;
use super::journal::Journal;
use super::power::Vm;
use super::shutdown;
use super::told::Told;
use crate::error::ServiceError;
use crate::vm::activity::Activity;

/// Rest after a limit could not be carried out.
const RETRY: Duration = Duration::from_secs(30);

/// Limit of a VM that can pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Limit {
    /// It has existed for long enough.
    Lifetime,
    /// Nobody has used it for long enough to end it.
    Idle,
    /// A shutdown that somebody planned is due.
    Shutdown,
    /// Nobody has used it for long enough to pause it.
    Pause,
    /// Nobody has used it for long enough to hibernate it.
    Hibernate,
}

/// Tells when a limit of one VM passes.
#[derive(Debug, Default)]
pub(super) struct IdleCare {
    /// No limit is looked at before, by the clock that is never set back; `None`: at once.
    rest_until: Option<Instant>,
}

impl IdleCare {
    /// Looks at no limit for a while: one could not be carried out.
    fn put_off(&mut self, clock: &dyn Clock) {
        self.rest_until = Some(clock.steady() + RETRY);
    }

    /// Looks at limits at once: they may be others now.
    pub(super) fn look_again(&mut self) {
        self.rest_until = None;
    }

    /// Waits until a limit passes; for ever if the VM has none. One that is not `usable` (its agent does not answer, it
    /// waits for room on the disk) is not idle because nobody uses it.
    pub(super) async fn passes(&self, journal: &Journal, activity: &Activity, usable: bool) -> Limit {
        let (clock, record) = (&journal.shared.ports.clock, &journal.record);
        if let Some(moment) = self.rest_until {
            clock.sleep_until(moment).await;
        }
        let left = |since_ms: i64, seconds: u64| {
            let end =
                since_ms.saturating_add(i64::try_from(seconds).unwrap_or(i64::MAX).saturating_mul(1_000));
            let left = Duration::from_millis(u64::try_from(end.saturating_sub(clock.now_ms())).unwrap_or(0));
            // A clock that was set back makes nothing last longer than its limit from now.
            left.min(Duration::from_secs(seconds))
        };
        // Only what has a machine costs anything; an ephemeral VM is removed even when it is stopped.
        let applies = record.limits.ephemeral || matches!(record.phase(), Phase::Running | Phase::Paused);
        let lifetime = async {
            match record.limits.lifetime_seconds {
                Some(seconds) if applies => clock.sleep(left(record.created_ms, seconds)).await,
                _ => std::future::pending().await,
            }
        };
        let planned = async {
            match record.planned_shutdown {
                Some(planned) if shutdown::is_up(record.phase()) => {
                    clock.sleep(left(planned.since_ms, planned.delay_seconds)).await;
                }
                _ => std::future::pending().await,
            }
        };
        let idle = async |seconds: Option<u64>, applies: bool| {
            let Some(seconds) = seconds.filter(|_| applies && usable) else {
                return std::future::pending().await;
            };
            loop {
                // No timer while it is used: the idle time begins with the end of the last use.
                activity.idle().await;
                let left = left(activity.idle_at_most_since(clock.now_ms()), seconds);
                // Looked at again after each sleep: a use in between moved the end.
                if left.is_zero() {
                    return;
                }
                clock.sleep(left).await;
            }
        };
        let limits = &record.limits;
        let runs = record.phase() == Phase::Running;
        // What somebody paused by hand stays as it is; what was paused for being idle may hibernate.
        let may_hibernate =
            runs || (record.phase() == Phase::Paused && record.life.rest() == Some(&Rest::Paused));
        tokio::select! {
            () = lifetime => Limit::Lifetime,
            () = planned => Limit::Shutdown,
            () = idle(limits.idle_seconds, applies) => Limit::Idle,
            () = idle(limits.hibernate_seconds, may_hibernate) => Limit::Hibernate,
            () = idle(limits.pause_seconds, runs) => Limit::Pause,
        }
    }
}

/// True if somebody uses the VM, has used it since there had been so many `uses`, or waits for it.
fn is_wanted_since(vm: &Vm, uses: u64) -> bool {
    vm.activity.idle_since_ms().is_none() || vm.activity.uses() != uses || !vm.inbox.is_empty()
}

async fn lists_detached_work(journal: &Journal) -> Result<bool, ServiceError> {
    let guest = journal.guest.as_ref().ok_or_else(|| ServiceError::NotRunning(journal.phase()))?;
    match guest.processes().await {
        Ok(processes) => Ok(processes
            .iter()
            .any(|process| process.detached && process.exit.is_none() && !process.id.is_start_command())),
        // An agent of an earlier version has no such list, and no detached work that anybody could ask for.
        Err(GuestError::Refused { kind: ErrorKind::Unsupported, .. }) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

impl Vm {
    /// True if a process lives that somebody started to live on by itself (start commands are servers for requests, which
    /// count themselves). Asked once in an idle time. A VM that rests is woken for the question; if it has such work it goes on,
    /// and rests again by its own limits.
    ///
    /// # Errors
    /// If that is not known: the VM does not wake, or its agent does not tell.
    async fn has_detached_work(&mut self) -> Result<bool, ServiceError> {
        match self.journal.phase() {
            Phase::Running => {}
            Phase::Paused if is_paused_by_hand(&self.journal) => {
                return has_detached_work_under_pause(self).await;
            }
            Phase::Paused => self.resume().await?,
            // One whose last wake failed still has its memory on disk.
            Phase::Hibernated | Phase::Failed if self.journal.record.life.asleep().is_some() => {
                self.start(false).await?;
            }
            // It has no processes.
            _ => return Ok(false),
        }
        lists_detached_work(&self.journal).await
    }
}

fn is_paused_by_hand(journal: &Journal) -> bool {
    journal.phase() == Phase::Paused && journal.record.life.rest().is_none()
}

/// As [`Vm::has_detached_work`], of a VM that was paused by hand: its processors run for the question only. It is not shown as
/// running, so that nobody gets its guest meanwhile; if it cannot be paused again it runs, and is shown so.
async fn has_detached_work_under_pause(vm: &mut Vm) -> Result<bool, ServiceError> {
    let Vm { journal, reach, .. } = vm;
    let machine = journal.living()?;
    machine.resume().await?;
    let has_work = async {
        if journal.guest.is_none() {
            reach.connect(journal, &machine).await?;
        }
        reach.tell_time(journal).await;
        lists_detached_work(journal).await
    }
    .await;
    // Once more: what was busy for a moment may be done, and nobody expects it to run.
    if machine.pause().await.is_err()
        && let Err(error) = machine.pause().await
    {
        let reason = format!("it ran to be asked for its work, and does not pause again: {error}");
        tracing::warn!(vm = %journal.record.id, reason, "a VM that was paused by hand runs");
        // An order that is answered too late is carried out all the same: what is shown as running is told to run.
        let _ = machine.resume().await;
        journal.note(LifecycleEvent::Resume, Told::words(reason.clone())).await;
        if journal.guest.is_some() {
            journal.expect_heartbeats(true);
        } else {
            reach.lost(journal, reason);
        }
    }
    has_work
}

impl VmActor {
    /// Carries out a limit that has passed.
    pub(super) async fn limit_passed(&mut self, limit: Limit) {
        // What is paused or hibernated goes on with everything later; only an end loses work.
        if limit == Limit::Idle {
            // Counted before the guest is asked: uses that begin and end meanwhile count, too.
            let uses = self.vm.activity.uses();
            let has_work = match self.vm.has_detached_work().await {
                // To end it in good order its processors have to run.
                Ok(false) if is_paused_by_hand(&self.vm.journal) && !is_wanted_since(&self.vm, uses) => {
                    self.vm.resume().await.map(|()| false)
                }
                other => other,
            };
            match has_work {
                // Somebody came while it was asked, and may have seen it awake.
                Ok(false) if is_wanted_since(&self.vm, uses) => return,
                Ok(false) => {}
                Ok(true) => return self.vm.activity.touch(self.vm.journal.now_ms()),
                Err(error) => {
                    tracing::warn!(vm = %self.vm.journal.record.id, %error, "whether it has detached work is not known: it is not ended for being idle");
                    return self.idle.put_off(&*self.vm.journal.shared.ports.clock);
                }
            }
        }
        let Vm { journal, .. } = &self.vm;
        let (id, grace) = (journal.record.id.clone(), journal.shared.settings.stop_grace);
        tracing::info!(vm = %id, ?limit, "limit passed");
        let reason = match limit {
            Limit::Lifetime => StopReason::LifetimeLimit,
            Limit::Shutdown => StopReason::User,
            Limit::Idle | Limit::Pause | Limit::Hibernate => StopReason::IdleLimit,
        };
        let carried_out = match limit {
            Limit::Shutdown => shutdown::carry_out(&mut self.vm).await,
            Limit::Pause => self.vm.pause_for_rest().await,
            Limit::Hibernate => self.vm.hibernate(reason).await,
            Limit::Lifetime | Limit::Idle if journal.record.limits.ephemeral => {
                self.erase_ephemeral(Told::stop_with(reason, reason.as_str())).await;
                Ok(())
            }
            Limit::Lifetime | Limit::Idle => self.vm.stop(false, grace, reason).await,
        };
        if let Err(error) = &carried_out {
            tracing::warn!(vm = %id, %error, ?limit, "a limit could not be carried out, it is tried again");
        }
        // A VM that was to end and is still there was kept by something; it is tried again, but not at once.
        if carried_out.is_err() || matches!(limit, Limit::Lifetime | Limit::Idle) {
            self.idle.put_off(&*self.vm.journal.shared.ports.clock);
        }
    }
}
