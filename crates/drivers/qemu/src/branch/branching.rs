//! The live branch: device state, disks and changed memory of a machine in one short pause.
//!
//! ```text
//!  before      new overlays opened and added; meanwhile changed pages counted and copied
//!  pause       stop ▶ ┬ device state ▶ disks switched ──────────┬ ▶ cont
//!                     └ pages written since found and copied ───┘
//!  after       device state read, copies put together
//! ```

use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use camino::Utf8Path;
use microvm_confinement::ProcessIdentity;
use microvm_ports::branch::{
    Branch, BranchRequest, BranchTimes, Compatibility, DiskChange, Flattener, InputProbe, StateMemory,
};
use microvm_ports::capabilities::SaveKind;
use microvm_ports::hypervisor::{MachineExit, MachineState};
use microvm_ports::{BranchError, Brancher, MachineError, StateParts};
use serde_json::{Value, json};
use tokio::sync::watch;

use super::new_overlays::Switch;
use super::saving::Saving;
use super::state_file::StateFile;
use crate::control::qmp::Qmp;
use crate::memory::{Harvest, Harvested};
use crate::probe::ABILITIES;

/// Longest time for all rounds of waiting for input; they take some milliseconds.
const INPUT_DEADLINE: Duration = Duration::from_secs(2);
/// Rounds of QEMU's main loop after which it has taken all that a guest can have room for: 128 buffers of 4 KiB (the
/// queue of virtio-serial), one in a round, and as many again for safety. What is then still on its way stays there.
const INPUT_ROUNDS: u32 = 256;

/// One machine's side of branching.
#[derive(Clone)]
pub(crate) struct Branching {
    pub(crate) qmp: Arc<Qmp>,
    pub(crate) state: watch::Receiver<MachineState>,
    pub(crate) process: ProcessIdentity,
    pub(crate) saving: Saving,
    /// True if memory may be copied before the pause.
    pub(crate) write_tracking: bool,
}

#[async_trait]
impl Brancher for Branching {
    fn compatibility(&self) -> &Compatibility {
        &self.saving.compatibility
    }

    fn kind(&self) -> SaveKind {
        ABILITIES.save
    }

    fn memory_base(&self) -> Option<&Utf8Path> {
        Some(&self.saving.memory_base)
    }

    fn flattener(&self) -> Option<&dyn Flattener> {
        Some(self)
    }

    async fn branch(&self, request: BranchRequest) -> Result<Branch, BranchError> {
        // A task of its own: if the caller goes away, the machine must not stay paused.
        let this = self.clone();
        tokio::spawn(async move { this.run(request).await }).await.unwrap_or_else(|error| {
            let detail = format!("the branch was interrupted: {error}");
            Err(MachineError::Refused { action: "branch", detail }.into())
        })
    }
}

#[async_trait]
impl Flattener for Branching {
    async fn flatten(&self, serial: &str) -> Result<Option<String>, BranchError> {
        self.flatten_disk(serial).await
    }
}

impl Branching {
    pub(crate) async fn call(
        &self,
        action: &'static str,
        command: &str,
        arguments: Value,
    ) -> Result<Value, MachineError> {
        let exit: Option<MachineExit> = match &*self.state.borrow() {
            MachineState::Exited(exit) => Some(exit.clone()),
            _ => None,
        };
        match exit {
            Some(exit) => Err(MachineError::Exited(exit)),
            None => self.qmp.call(action, command, arguments).await,
        }
    }

    async fn run(&self, request: BranchRequest) -> Result<Branch, BranchError> {
        self.stop_flattening().await?;
        let overlays = async {
            // Made and opened before the pause, in which the disks only switch to them.
            let overlays = request.steps.freeze_disks().await?;
            let blocks = self.call("list its disks", "query-block", json!({})).await?;
            self.forget_unused(&blocks).await?;
            let switches = self.add_overlays(&blocks, &overlays).await?;
            Ok::<_, BranchError>((switches, overlays))
        };
        let (overlays, harvest) = tokio::join!(overlays, self.harvest(request.stay_paused));
        let (switches, disks) = overlays?;
        let outcome = match harvest {
            Ok(harvest) => self.prepared(&request, &switches, disks, harvest).await,
            Err(error) => Err(error),
        };
        if outcome.is_err() {
            // Overlays that were not switched to would stay open until the machine ends.
            for switch in &switches {
                let arguments = json!({ "node-name": switch.overlay });
                let _ = self.call("drop a disk's new overlay", "blockdev-del", arguments).await;
            }
        }
        outcome
    }

    async fn prepared(
        &self,
        request: &BranchRequest,
        switches: &[Switch],
        disks: Vec<DiskChange>,
        harvest: Harvest,
    ) -> Result<Branch, BranchError> {
        let state_file = StateFile::for_saving(&self.qmp).await?;
        let status = self.call("tell its status", "query-status", json!({})).await?;
        // A VM that its user paused stays paused.
        let was_running = status["running"].as_bool() == Some(true);
        let mut times = BranchTimes { ahead: harvest.took(), ..BranchTimes::default() };
        let held = request.steps.hold_input().await;
        let began = Instant::now();
        if was_running && let Err(error) = self.call("pause", "stop", json!({})).await {
            // A `stop` that is answered too late still takes effect; the `cont` behind it undoes it.
            let _ = self.call("resume", "cont", json!({})).await;
            return Err(error.into());
        }
        times.stop = began.elapsed();
        let taken = self.take(held.as_ref(), &state_file, switches, harvest, &mut times).await;
        if was_running && !request.stay_paused {
            let resuming = Instant::now();
            self.call("resume", "cont", json!({})).await?;
            times.resume = resuming.elapsed();
        }
        drop(held);
        if was_running {
            times.pause = began.elapsed();
        }
        let harvested = taken?;
        // The machine runs again: what remains lengthens no pause.
        let pages = blocking(|| harvested.into_pages()).await?;
        let device_state = state_file.read(&self.qmp).await?;
        let memory = StateMemory::Pages { base: self.saving.memory_base.clone(), pages };
        Ok(Branch { parts: StateParts::single(device_state), memory, disks, times, ended: false })
    }

    /// Everything inside the pause.
    async fn take(
        &self,
        input: Option<&InputProbe>,
        state_file: &StateFile,
        switches: &[Switch],
        harvest: Harvest,
        times: &mut BranchTimes,
    ) -> Result<Harvested, BranchError> {
        if let Some(input) = input {
            self.input_stands_still(input).await?;
        }
        // Beside the device state, which QEMU writes meanwhile: the pause lasts as long as the longer of the two.
        let copying = tokio::task::spawn_blocking(move || {
            let began = Instant::now();
            harvest.complete().map(|harvested| (harvested, began.elapsed()))
        });
        let began = Instant::now();
        let saved = state_file.save(self).await;
        times.device_state = began.elapsed();
        let switched = match saved {
            Ok(()) if switches.is_empty() => Ok(()),
            Ok(()) => {
                let began = Instant::now();
                let actions: Vec<Value> = switches
                    .iter()
                    .map(|switch| {
                        let data = json!({ "node": switch.node, "overlay": switch.overlay });
                        json!({ "type": "blockdev-snapshot", "data": data })
                    })
                    .collect();
                let outcome =
                    self.call("freeze its disks", "transaction", json!({ "actions": actions })).await;
                times.disks = began.elapsed();
                outcome.map(|_| ())
            }
            Err(error) => Err(error),
        };
        // The copy is waited for in any case: the processors must not run while pages are copied.
        let copied = copying.await;
        let (harvested, duration) = copied.map_err(broken_off)??;
        times.memory = duration;
        switched?;
        Ok(harvested)
    }

    /// Waits until no input is on its way to the guest: a paused QEMU still takes bytes that its guest has made room for, into
    /// memory that is being copied, past a device state that was saved.
    async fn input_stands_still(&self, input: &InputProbe) -> Result<(), MachineError> {
        let began = Instant::now();
        for _ in 0..INPUT_ROUNDS {
            if input() == 0 {
                break;
            }
            if began.elapsed() > INPUT_DEADLINE {
                return Err(MachineError::Timeout { action: "take its input", after: INPUT_DEADLINE });
            }
            // Between two answers QEMU's main loop has looked once at everything that was ready.
            self.call("tell its status", "query-status", json!({})).await?;
        }
        Ok(())
    }

    /// Begins copying its memory while it runs.
    async fn harvest(&self, stay_paused: bool) -> Result<Harvest, BranchError> {
        let (process, memory) = (self.process, self.saving.memory);
        // A machine that is paused, or stays paused, gains nothing by a short pause.
        let goes_on = matches!(*self.state.borrow(), MachineState::Running) && !stay_paused;
        let ahead = self.write_tracking && self.saving.buffered_disks && goes_on;
        blocking(move || Harvest::begin(process, memory, ahead)).await
    }
}

/// Work on memory is done by a helper thread.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, BranchError> + Send + 'static,
) -> Result<T, BranchError> {
    tokio::task::spawn_blocking(work).await.map_err(broken_off)?
}

fn broken_off(error: tokio::task::JoinError) -> BranchError {
    BranchError::Memory { step: "copying it", cause: std::io::Error::other(error) }
}
