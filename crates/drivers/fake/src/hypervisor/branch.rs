//! Branching a fake machine, and what its states need of the host.

use std::time::Instant;

use async_trait::async_trait;
use camino::Utf8Path;
use microvm_ports::branch::{
    Branch, BranchError, BranchRequest, BranchTimes, Brancher, Compatibility, DiskChange, Flattener,
    IncomingState, StateMemory,
};
use microvm_ports::capabilities::{MemoryShape, SaveKind};
use microvm_ports::hypervisor::{LaunchError, MachineError, MachineExit, MachineState};

use microvm_ports::state_parts::StateParts;
use microvm_types::kernel::DeviceDiscovery;

use crate::guest::saved_guest::SavedGuest;
use crate::hypervisor::character::Character;
use crate::hypervisor::machine::FakeMachine;
use crate::hypervisor::memory;
use crate::script::{Operation, Verdict};

/// Needs of states of this VMM version, of machines whose kernel finds its devices by `discovery`.
pub(crate) fn compatibility(name: &str, version: &str, discovery: DeviceDiscovery) -> Compatibility {
    Compatibility::from([
        ("VMM".to_owned(), format!("{name} {version}")),
        ("machine".to_owned(), discovery.as_str().to_owned()),
    ])
}

/// Refuses a state that needs something else than what is here.
///
/// Returns the needs of machines that are launched from it, which are the same.
pub(crate) fn check(needed: &Compatibility, name: &str, version: &str) -> Result<Compatibility, LaunchError> {
    let discoveries = [DeviceDiscovery::Acpi, DeviceDiscovery::CommandLine];
    let is_of = |found: &&DeviceDiscovery| needed.get("machine").is_some_and(|name| name == found.as_str());
    let discovery = discoveries.iter().find(is_of).copied().unwrap_or_default();
    let here = compatibility(name, version, discovery);
    let differs = needed.iter().find(|(what, needed)| here.get(*what) != Some(*needed));
    match differs {
        None => Ok(here),
        Some((what, needed)) => Err(LaunchError::Incompatible {
            what: what.clone(),
            needed: needed.clone(),
            here: here.get(what).cloned().unwrap_or_else(|| "nothing known".to_owned()),
        }),
    }
}

/// The guest in a state, if it fits the machine.
pub(crate) fn load(
    character: Character,
    state: &IncomingState,
    vcpus: u32,
    memory_mib: u32,
) -> Result<SavedGuest, LaunchError> {
    let (form, wanted) = (state.memory.shape(), character.abilities().load.memory());
    if wanted != Some(form) || state.memory.page_bytes() > 0 && form != MemoryShape::PagesOverBase {
        return Err(LaunchError::BadState(format!("its memory is {form:?}, this VMM loads {wanted:?}")));
    }
    let (header, bytes) = memory::take(state).map_err(LaunchError::BadState)?;
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
    fn take(
        &self,
        request: &BranchRequest,
        layers: &[DiskChange],
    ) -> Result<(StateParts, StateMemory), BranchError> {
        let disk_error =
            |serial: &str, detail: String| BranchError::Disk { serial: serial.to_owned(), detail };
        let mut overlays = self.overlays();
        // Everything that may be refused comes before the first disk is switched.
        let mut switches = Vec::new();
        for (serial, old) in &*overlays {
            let new = layers.iter().find(|overlay| overlay.serial == *serial);
            let new = new
                .ok_or_else(|| disk_error(serial, "it is writable and has no new overlay".to_owned()))?
                .path
                .clone();
            if !new.exists() {
                return Err(disk_error(serial, format!("{new} does not exist")));
            }
            switches.push((old.clone(), new));
        }
        if let Some(overlay) = layers.iter().find(|overlay| !overlays.contains_key(&overlay.serial)) {
            return Err(disk_error(&overlay.serial, "there is no such disk".to_owned()));
        }
        let (vcpus, memory_mib) = (self.system.vcpus, self.system.memory_mib);
        let state = serde_json::to_vec(&self.system.save())
            .map_err(|error| BranchError::Memory { step: "copying it", cause: error.into() })?;
        let too_much = || BranchError::NoMemory {
            changed_mib: (state.len() >> 20) as u64,
            available_mib: memory_mib.into(),
        };
        let (device_state, pages) = memory::put(&state, vcpus, memory_mib).ok_or_else(too_much)?;
        let taken = match self.character {
            Character::LivePages => {
                let base = self.memory_base.clone().unwrap_or_default();
                (StateParts::single(device_state), StateMemory::Pages { base, pages })
            }
            Character::PausedFile => {
                let file = memory::write(&request.directory, &pages, memory_mib)
                    .map_err(|cause| BranchError::Memory { step: "writing it", cause })?;
                (memory::with_configuration(device_state, vcpus, memory_mib), StateMemory::File(file))
            }
            Character::PausedSparse => {
                let parts = memory::with_configuration(device_state, vcpus, memory_mib);
                let saved = self.sparse().save(&request.directory, &pages, memory_mib);
                (parts, saved.map_err(|cause| BranchError::Memory { step: "writing it", cause })?)
            }
            Character::Stops => {
                (StateParts::single(memory::inside(&device_state, &state)), StateMemory::Inside)
            }
        };
        for ((serial, overlay), (old, new)) in overlays.iter_mut().zip(switches) {
            self.disks().switch(&old, &new).map_err(|error| disk_error(serial, error.to_string()))?;
            *overlay = new;
        }
        Ok(taken)
    }
}

#[async_trait]
impl Brancher for FakeMachine {
    fn compatibility(&self) -> &Compatibility {
        &self.compatibility
    }

    fn kind(&self) -> SaveKind {
        self.character.abilities().save
    }

    fn memory_base(&self) -> Option<&Utf8Path> {
        self.memory_base.as_deref().filter(|_| self.character == Character::LivePages)
    }

    fn flattener(&self) -> Option<&dyn Flattener> {
        Some(self)
    }

    async fn branch(&self, request: BranchRequest) -> Result<Branch, BranchError> {
        let verdict = self.script().ask(Operation::Branch).await;
        if verdict == Verdict::Fail {
            let detail = "a fault was planned here".to_owned();
            return Err(MachineError::Refused { action: "save its state", detail }.into());
        }
        if let Some(exit) = self.exit() {
            return Err(MachineError::Exited(exit).into());
        }
        let disks = request.steps.freeze_disks().await?;
        let held = request.steps.hold_input().await;
        let began = Instant::now();
        let (parts, memory) = self.take(&request, &disks)?;
        let ended = self.kind() == SaveKind::Stops;
        if ended {
            self.end(MachineExit::Killed);
        } else if request.stay_paused {
            self.go(MachineState::Paused)?;
        }
        verdict.finish().await;
        drop(held);
        let times = BranchTimes { pause: began.elapsed(), ..BranchTimes::default() };
        Ok(Branch { parts, memory, disks, times, ended })
    }
}

#[async_trait]
impl Flattener for FakeMachine {
    async fn flatten(&self, serial: &str) -> Result<Option<String>, BranchError> {
        if let Some(exit) = self.exit() {
            return Err(MachineError::Exited(exit).into());
        }
        // What a living machine sees is in memory as a whole, whatever lies below its overlay.
        let known = self.overlays().contains_key(serial);
        let detail = "there is no such disk".to_owned();
        if known { Ok(None) } else { Err(BranchError::Disk { serial: serial.to_owned(), detail }) }
    }
}
