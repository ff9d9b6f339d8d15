//! Branching a fake machine, and what its states need of the host.

use std::time::Instant;

use async_trait::async_trait;
use camino::Utf8Path;
use microvm_ports::branch::{
    Branch, BranchError, BranchRequest, BranchTimes, Brancher, Compatibility, IncomingState, MemoryPages,
};
use microvm_ports::hypervisor::{DeviceDiscovery, LaunchError, MachineError, MachineState};

use crate::machine::FakeMachine;
use crate::memory;
use crate::saved_guest::SavedGuest;
use crate::script::{Operation, Verdict};

/// What states of the given version need.
pub(crate) fn compatibility(version: &str, discovery: DeviceDiscovery) -> Compatibility {
    let machine = match discovery {
        DeviceDiscovery::Acpi => "acpi",
        DeviceDiscovery::CommandLine => "command line",
    };
    Compatibility::from([
        ("VMM".to_owned(), format!("fake {version}")),
        ("machine".to_owned(), machine.to_owned()),
    ])
}

/// Refuses a state that needs something else than what is here.
pub(crate) fn check(state: &IncomingState, version: &str) -> Result<(), LaunchError> {
    let here = compatibility(version, state.discovery);
    let differs = state.compatibility.iter().find(|(what, needed)| here.get(*what) != Some(*needed));
    differs.map_or(Ok(()), |(what, needed)| {
        Err(LaunchError::Incompatible {
            what: what.clone(),
            needed: needed.clone(),
            here: here.get(what).cloned().unwrap_or_else(|| "nothing known".to_owned()),
        })
    })
}

/// The guest in a state, if it fits the machine.
pub(crate) fn load(
    base: &Utf8Path,
    state: &IncomingState,
    vcpus: u32,
    memory_mib: u32,
) -> Result<SavedGuest, LaunchError> {
    let (header, bytes) = memory::take(base, state).map_err(LaunchError::BadState)?;
    if (header.vcpus, header.memory_mib) != (vcpus, memory_mib) {
        return Err(LaunchError::BadState(format!(
            "it is of a machine with {} processors and {} MiB, this one has {vcpus} and {memory_mib} MiB",
            header.vcpus, header.memory_mib
        )));
    }
    serde_json::from_slice(&bytes).map_err(|error| LaunchError::BadState(error.to_string()))
}

impl FakeMachine {
    /// The state of this moment, disk included; nothing has changed if it fails.
    fn take(&self, request: &BranchRequest) -> Result<(bytes::Bytes, MemoryPages), BranchError> {
        let disk_error =
            |serial: &str, detail: String| BranchError::Disk { serial: serial.to_owned(), detail };
        let mut tops = self.tops();
        let mut switches = Vec::new();
        for (serial, old) in &*tops {
            let new = request.tops.iter().find(|top| top.serial == *serial);
            let new = new
                .ok_or_else(|| disk_error(serial, "it is writable and has no new top".to_owned()))?
                .path
                .clone();
            if !new.exists() {
                return Err(disk_error(serial, format!("{new} does not exist")));
            }
            switches.push((old.clone(), new));
        }
        if let Some(top) = request.tops.iter().find(|top| !tops.contains_key(&top.serial)) {
            return Err(disk_error(&top.serial, "there is no such disk".to_owned()));
        }
        let (vcpus, memory_mib) = (self.system.vcpus, self.system.memory_mib);
        let state = serde_json::to_vec(&self.system.save())
            .map_err(|error| BranchError::Memory { step: "copying it", cause: error.into() })?;
        let too_much = || BranchError::NoMemory {
            changed_mib: (state.len() >> 20) as u64,
            available_mib: memory_mib.into(),
        };
        let taken = memory::put(&state, vcpus, memory_mib).ok_or_else(too_much)?;
        for ((serial, top), (old, new)) in tops.iter_mut().zip(switches) {
            self.disks().switch(&old, &new).map_err(|error| disk_error(serial, error.to_string()))?;
            *top = new;
        }
        Ok(taken)
    }
}

#[async_trait]
impl Brancher for FakeMachine {
    fn compatibility(&self) -> &Compatibility {
        &self.compatibility
    }

    fn discovery(&self) -> DeviceDiscovery {
        self.discovery
    }

    fn memory_base(&self) -> &Utf8Path {
        &self.memory_base
    }

    async fn flatten(&self, serial: &str) -> Result<Option<String>, BranchError> {
        if let Some(exit) = self.exit() {
            return Err(MachineError::Exited(exit).into());
        }
        // What a living machine sees is in memory as a whole, whatever lies below its top.
        let known = self.tops().contains_key(serial);
        let detail = "there is no such disk".to_owned();
        if known { Ok(None) } else { Err(BranchError::Disk { serial: serial.to_owned(), detail }) }
    }

    async fn branch(&self, request: BranchRequest) -> Result<Branch, BranchError> {
        let verdict = self.script().ask(Operation::Branch).await;
        if verdict == Verdict::Fail {
            let detail = "a fault was planned here".to_owned();
            return Err(MachineError::Refused { action: "save its state", detail }.into());
        }
        let began = Instant::now();
        if let Some(exit) = self.exit() {
            return Err(MachineError::Exited(exit).into());
        }
        let (device_state, pages) = self.take(&request)?;
        if request.stay_paused {
            self.go(MachineState::Paused)?;
        }
        verdict.finish().await;
        let pause = began.elapsed();
        Ok(Branch { device_state, pages, times: BranchTimes { pause, ..BranchTimes::default() } })
    }
}
