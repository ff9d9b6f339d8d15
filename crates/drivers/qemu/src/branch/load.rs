//! Loading a saved state into a QEMU that was started for it.

use std::os::fd::AsFd as _;

use microvm_ports::branch::{IncomingState, StateMemory};
use microvm_ports::waiting::within;
use microvm_ports::{LaunchError, MachineError};
use serde_json::json;

use super::Branching;
use super::state_file;
use crate::control::qmp::Qmp;
use crate::memory::{Mapping, inject};

/// Puts the pages in place.
pub(crate) async fn load_pages(machine: &Branching, state: &IncomingState) -> Result<(), LaunchError> {
    let StateMemory::Pages { pages, .. } = &state.memory else {
        return Err(LaunchError::BadState("its memory is not in pages over a base file".to_owned()));
    };
    if !pages.is_empty() {
        let (process, memory, pages) = (machine.process, machine.saving.memory, pages.clone());
        let copied = tokio::task::spawn_blocking(move || {
            let mapping = Mapping::find(process, memory)?;
            inject(&mapping, &pages)?;
            // After the writes: before them it would only say whose the process number was then.
            mapping.check_process()
        })
        .await;
        copied
            .map_err(std::io::Error::other)
            .and_then(|copied| copied)
            .map_err(failed("filling its memory"))?;
    }
    Ok(())
}

fn failed(step: &'static str) -> impl Fn(std::io::Error) -> LaunchError {
    move |error| LaunchError::Process { step, detail: error.to_string() }
}

/// Loads everything but memory and disks, which must be there: devices look at both when they are loaded. The processors are paused before and after.
pub(crate) async fn load_devices(qmp: &Qmp, device_state: &[u8]) -> Result<(), LaunchError> {
    let refused = |error: MachineError| LaunchError::BadState(error.to_string());
    let file = state_file::holding(device_state).map_err(failed("handing over its state"))?;
    // Asked for before the load begins, so that its end is not missed.
    let mut loaded = qmp.migration();
    let events = json!({ "capabilities": [{ "capability": "events", "state": true }] });
    qmp.call("tell of its load", "migrate-set-capabilities", events).await.map_err(refused)?;
    let name = json!({ "fdname": "state" });
    qmp.call_with_descriptor("take its state", "getfd", name, file.as_fd()).await.map_err(refused)?;
    qmp.call("load its state", "migrate-incoming", json!({ "uri": "fd:state" })).await.map_err(refused)?;
    let after = qmp.deadline();
    match within(after, loaded.wait_for(|status| status.is_final())).await {
        Ok(Ok(status)) if status.is_complete() => Ok(()),
        Ok(Ok(_)) => Err(LaunchError::BadState("the VMM says that it failed".to_owned())),
        Ok(Err(_)) => Err(LaunchError::BadState("the VMM closed its control socket".to_owned())),
        Err(_) => Err(LaunchError::Timeout { step: "loading its state", after }),
    }
}
