//! Shutdowns that are planned: stored with the VM, so that the next server carries them out, and given up by a start.

use std::time::Duration;

use microvm_types::lifecycle::LifecycleEvent;
use microvm_types::vm::{PlannedShutdown, VmRecord};
use microvm_types::{Phase, StopReason};

use super::ending::finish_end;
use super::journal::Journal;
use super::power::Vm;
use crate::error::ServiceError;

/// Plans a shutdown in place of one that was planned before. A VM that is off already stays so.
pub(super) async fn plan(vm: &mut Vm, delay: Duration, force: bool) -> Result<(), ServiceError> {
    let Vm { journal, restarting, .. } = vm;
    if !journal.admits(LifecycleEvent::Stop)? {
        // Also one that its guest has reset, and that would start by itself.
        restarting.cancel();
        return Ok(());
    }
    // One that waits in a pool is nobody's to shut down later.
    if !is_up(journal.phase()) {
        return Err(ServiceError::NotRunning(journal.phase()));
    }
    let planned = PlannedShutdown { since_ms: journal.now_ms(), delay_seconds: delay.as_secs(), force };
    let record = VmRecord { planned_shutdown: Some(planned), ..journal.record.clone() };
    journal.replace(record).await
}

/// Gives up the shutdown that is planned, if there is one.
pub(super) async fn give_up(journal: &mut Journal) -> Result<(), ServiceError> {
    if journal.record.planned_shutdown.is_none() {
        return Ok(());
    }
    let record = VmRecord { planned_shutdown: None, ..journal.record.clone() };
    journal.replace(record).await
}

/// Starts the VM as somebody asked, who wants it to run on.
pub(super) async fn start(vm: &mut Vm, cold: bool) -> Result<(), ServiceError> {
    let to_do = vm.journal.admits(LifecycleEvent::Start)?;
    give_up(&mut vm.journal).await?;
    if to_do { vm.start(cold).await } else { Ok(()) }
}

/// Finishes the end of a VM that has no machine, and is not to start again by itself.
pub(super) async fn end_for_good(journal: &mut Journal) -> Result<(), ServiceError> {
    give_up(journal).await?;
    finish_end(journal).await
}

/// Carries out the shutdown that is due.
pub(super) async fn carry_out(vm: &mut Vm) -> Result<(), ServiceError> {
    let Some(planned) = vm.journal.record.planned_shutdown else { return Ok(()) };
    let grace = vm.journal.shared.settings.stop_grace;
    vm.stop(planned.force, grace, StopReason::User).await
}

/// Forgets the shutdown of a VM that is not up any more: whoever starts it wants it to run. A guest that resets itself gets around
/// none, and neither does a VM that hibernates only until somebody uses it.
pub(super) fn forget_if_over(record: &mut VmRecord) {
    let goes_on = match record.last_stop.as_ref().map(|stop| stop.reason) {
        Some(StopReason::GuestReset) => matches!(record.phase(), Phase::Stopped | Phase::Starting),
        Some(StopReason::IdleLimit) => record.life.asleep().is_some() && record.phase() != Phase::Failed,
        _ => false,
    };
    if !is_up(record.phase()) && !goes_on {
        record.planned_shutdown = None;
    }
}

/// True where there is something to shut down later.
pub(super) const fn is_up(phase: Phase) -> bool {
    matches!(phase, Phase::Running | Phase::Paused)
}
