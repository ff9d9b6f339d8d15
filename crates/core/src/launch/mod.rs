//! Bringing a machine up: every step is undone if a later one fails or the whole is dropped.

mod failure;
mod identity;
pub(crate) mod shares;
mod spec;
mod stages;

use microvm_ports::hypervisor::{MachineExit, MachineState};
use tokio::sync::watch;

pub(crate) use self::identity::identity;
pub(crate) use self::spec::{fix_formats, machine_spec};
pub(crate) use self::stages::{Connected, MachineFiles, Planned, Start, image_reference};

/// Epochs that a guest may have seen at most without the record's telling of them.
pub(crate) const MOST_LOST_EPOCHS: u32 = 16;

/// Waits until the processors of a machine stand still because the disk is full.
pub(crate) async fn disk_full(mut state: watch::Receiver<MachineState>) {
    if state.wait_for(|state| *state == MachineState::DiskFull).await.is_err() {
        // Nobody watches it any more: its end is told in another way.
        std::future::pending::<()>().await;
    }
}

/// Waits until a machine has ended.
pub(crate) async fn exited(mut state: watch::Receiver<MachineState>) -> MachineExit {
    loop {
        if let MachineState::Exited(exit) = &*state.borrow_and_update() {
            return exit.clone();
        }
        if state.changed().await.is_err() {
            return MachineExit::Vmm("its driver stopped watching it".to_owned());
        }
    }
}
