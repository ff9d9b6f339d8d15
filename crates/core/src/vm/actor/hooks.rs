//! Requests with the hooks before and after them.

use std::sync::Arc;

use microvm_ports::snapshot::BranchSource;
use microvm_types::lifecycle::{LifecycleEvent, Work};
use microvm_types::snapshot::SnapshotPurpose;
use microvm_types::template::HookPoint;

use super::journal::Journal;
use super::power::{Vm, sleep_again, wake_hibernated};
use super::saving;
use crate::error::ServiceError;
use crate::vm::command::{ForkPoint, SnapshotOrder, Written};
use crate::vm::hooks;

/// Pauses the VM as somebody asked.
pub(super) async fn pause(vm: &mut Vm) -> Result<(), ServiceError> {
    vm.journal.hook(HookPoint::BeforePause).await?;
    vm.pause(|life| life.apply(LifecycleEvent::Pause)).await?;
    let _ = vm.journal.hook(HookPoint::AfterPause).await;
    Ok(())
}

/// Resumes the VM as somebody asked.
pub(super) async fn resume(vm: &mut Vm) -> Result<(), ServiceError> {
    vm.journal.hook(HookPoint::BeforeResume).await?;
    vm.resume().await?;
    let _ = vm.journal.hook(HookPoint::AfterResume).await;
    Ok(())
}

/// Makes a state for `count` children.
pub(super) async fn fork(vm: &mut Vm, count: usize) -> Result<ForkPoint, ServiceError> {
    // A hook may quiesce something: only where the work can be done.
    vm.journal.permits(Work::Branch)?;
    let woken = wake_hibernated(vm).await?;
    let point = async {
        vm.journal.hook(HookPoint::BeforeFork).await?;
        saving::fork_point(vm, count).await
    }
    .await;
    let point = sleep_again(vm, woken, point).await?;
    let _ = vm.journal.hook(HookPoint::AfterFork).await;
    Ok(point)
}

/// Writes a snapshot; hooks are told of those that somebody asked for.
pub(super) async fn snapshot(vm: &mut Vm, order: SnapshotOrder) -> Result<Written, ServiceError> {
    // Golden snapshots are the server's own work, and a hibernation has no point of its own.
    if order.purpose != SnapshotPurpose::User {
        return saving::snapshot(vm, order).await;
    }
    vm.journal.permits(Work::Branch)?;
    let woken = wake_hibernated(vm).await?;
    let written = async {
        vm.journal.hook(HookPoint::BeforeSnapshot).await?;
        saving::snapshot(vm, order).await
    }
    .await;
    let written = sleep_again(vm, woken, written).await?;
    let _ = vm.journal.hook(HookPoint::AfterSnapshot).await;
    Ok(written)
}

/// Puts the VM back to a state of its own.
pub(super) async fn rollback(vm: &mut Vm, source: BranchSource, epoch: u64) -> Result<(), ServiceError> {
    vm.journal.permits(Work::Rollback)?;
    vm.journal.hook(HookPoint::BeforeRestore).await?;
    // Whoever wants it meanwhile waits: it is not stopped for them.
    vm.journal.comes_back = true;
    let back = vm.rollback(source, epoch).await;
    vm.journal.comes_back = false;
    vm.journal.publish();
    back?;
    let _ = vm.journal.hook(HookPoint::AfterRestore).await;
    Ok(())
}

/// Runs the hooks of a failure beside everything else: one that asks for something of this VM must not wait for whoever waits for
/// it.
pub(super) fn tell_failure(journal: &Journal) {
    let (shared, record) = (Arc::clone(&journal.shared), journal.record.clone());
    journal.shared.actors.spawn(async move {
        tokio::select! {
            () = shared.ending.cancelled() => {}
            _ = hooks::run(&shared.ports, &record, HookPoint::OnFailure) => {}
        }
    });
}
