//! States of a VM for forks and snapshots, and its machine launched again where it ends with its save.

use microvm_types::lifecycle::LifecycleEvent;
use microvm_types::vm::VmRecord;
use microvm_types::{Phase, StopReason};

use super::beginning::reason_of;
use super::branching::{self, Branched};
use super::ending::{end_last_machine, stopped_by_force, sweep_or_log};
use super::power::Vm;
use super::told::Told;
use crate::error::ServiceError;
use crate::launch::{Connected, Planned};
use crate::ports::Ports;
use crate::vm::command::{ForkPoint, SnapshotOrder, Written};

/// Makes a state for `count` children; the VM goes on.
pub(super) async fn fork_point(vm: &mut Vm, count: usize) -> Result<ForkPoint, ServiceError> {
    let mut branched = branching::take(&vm.journal).await?;
    // Before the layers are used: the VM should stand still for as short as possible.
    go_on_after(vm, &mut branched).await?;
    vm.branching.fork_point(&vm.journal, branched, count).await
}

/// Writes a snapshot. Unless it is to stay paused, the VM goes on meanwhile.
pub(super) async fn snapshot(vm: &mut Vm, order: SnapshotOrder) -> Result<Written, ServiceError> {
    let (mut branched, record) = branching::take_for(&vm.journal, &order).await?;
    if !order.stay_paused {
        go_on_after(vm, &mut branched).await?;
    }
    branching::write(&vm.journal, order, branched, record).await
}

/// Launches the machine again if it has ended with its save. The VM's phase stays what it is; if the machine does not
/// come up the VM is lost, its state is not: it is gone on from by whoever asked for it.
pub(super) async fn go_on_after(vm: &mut Vm, branched: &mut Branched) -> Result<(), ServiceError> {
    if !branched.files.branch.ended {
        return Ok(());
    }
    // A machine that is launched again runs; a paused one is paused again below.
    let was_paused = vm.journal.phase() == Phase::Paused;
    vm.journal.machine = None;
    if let Some(guest) = vm.journal.guest.take() {
        guest.close();
    }
    match launch_again(vm, branched).await {
        Ok(up) => {
            // Whoever uses the state next is the last one.
            branched.files.branch.ended = false;
            vm.install(up);
            if was_paused {
                vm.journal.expect_heartbeats(false);
                vm.journal.living()?.pause().await?;
            }
            vm.journal.save(Told::NOTHING).await
        }
        Err(error) => {
            sweep_or_log(&vm.journal).await;
            match error {
                ServiceError::Overtaken(_) => {
                    stopped_by_force(&mut vm.journal, Told::stop(StopReason::User)).await
                }
                _ => {
                    let told = Told::stop_with(reason_of(&error), error.to_string());
                    vm.journal.note(LifecycleEvent::Lost, told).await;
                }
            }
            Err(error)
        }
    }
}

async fn launch_again(vm: &mut Vm, branched: &Branched) -> Result<Connected, ServiceError> {
    end_last_machine(&mut vm.journal).await?;
    let ports = vm.journal.shared.ports.clone();
    let load = ports.load_shape(&vm.journal.record.template).await?;
    // The VM is its own only child here.
    let source = ports.snapshots.fork_point(branched.files.clone(), 1, load).await?;
    vm.bring_up(async move |ports: &Ports, record: &VmRecord| {
        let planned = Planned::of(ports, record, Some(source)).await?;
        let files = planned.find_files(ports, record, None).await?;
        Ok((planned, files))
    })
    .await
}
