//! One fake machine.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use camino::Utf8PathBuf;
use microvm_ports::branch::{Brancher, Compatibility};
use microvm_ports::guest::{CloseReason, GuestEndpoint};
use microvm_ports::hypervisor::{
    Balloon, Machine, MachineCounters, MachineDisk, MachineError, MachineExit, MachineRecord, MachineShare,
    MachineSpec, MachineState,
};
use microvm_types::VmId;
use tokio::sync::watch;

use crate::guest::disks::Disks;
use crate::guest::system::GuestSystem;
use crate::hypervisor::balloon::FakeBalloon;
use crate::hypervisor::character::Character;
use crate::hypervisor::host::World;
use crate::hypervisor::sparse::SparseSaves;
use crate::script::{Operation, Script, Verdict};

/// Output of all machines of one VM; it stays when they end.
pub(crate) type Console = Arc<Mutex<Vec<u8>>>;

/// A machine without processors: a state, a console, and a guest of our own making.
#[derive(Debug)]
pub struct FakeMachine {
    pub(crate) id: VmId,
    pub(crate) directory: Utf8PathBuf,
    /// Tells this machine from earlier ones of the same VM, as a process number and start time do.
    pub(crate) serial: u64,
    pub(crate) system: Arc<GuestSystem>,
    state: watch::Sender<MachineState>,
    console: Console,
    started: Instant,
    script: Script,
    pub(crate) memory_base: Option<Utf8PathBuf>,
    pub(crate) character: Character,
    pub(crate) compatibility: Compatibility,
    can_branch: bool,
    pub(crate) balloon: Option<FakeBalloon>,
    /// Folders of the host it was launched with.
    pub shares: Vec<MachineShare>,
    /// Disks it was launched with.
    pub attached: Vec<MachineDisk>,
    disks: Arc<Disks>,
    /// File that each writable disk is written to, by serial number.
    overlays: Mutex<BTreeMap<String, Utf8PathBuf>>,
    /// Its saves so far, if it saves one over the other.
    sparse: Mutex<SparseSaves>,
}

/// Facts about a machine that a save needs.
#[derive(Debug)]
pub(crate) struct Saving {
    pub(crate) character: Character,
    pub(crate) compatibility: Compatibility,
    pub(crate) can_branch: bool,
}

impl FakeMachine {
    pub(crate) fn new(
        spec: &MachineSpec,
        serial: u64,
        system: Arc<GuestSystem>,
        console: Console,
        saving: Saving,
        world: &World,
    ) -> Self {
        let overlays =
            spec.writable_disks().map(|(_, disk)| (disk.serial.clone(), disk.path.clone())).collect();
        Self {
            id: spec.id.clone(),
            directory: spec.directory.clone(),
            serial,
            system,
            state: watch::Sender::new(MachineState::Paused),
            console,
            started: Instant::now(),
            script: world.script.clone(),
            memory_base: spec.memory_base().map(ToOwned::to_owned),
            character: saving.character,
            compatibility: saving.compatibility,
            can_branch: saving.can_branch,
            balloon: None,
            shares: spec.shares().cloned().collect(),
            attached: spec.disks().cloned().collect(),
            disks: Arc::clone(&world.disks),
            overlays: Mutex::new(overlays),
            sparse: Mutex::default(),
        }
    }

    pub(crate) fn alive(&self) -> bool {
        self.exit().is_none()
    }

    /// Ends it; the first reason stays.
    pub(crate) fn end(&self, exit: MachineExit) -> MachineExit {
        let mut told = exit.clone();
        self.state.send_if_modified(|state| match state {
            MachineState::Exited(first) => {
                told = first.clone();
                false
            }
            _ => {
                *state = MachineState::Exited(exit);
                true
            }
        });
        self.system.halt(CloseReason::EndOfStream);
        told
    }

    /// Adds to its console.
    pub(crate) fn print(&self, text: &str) {
        self.console.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(text.as_bytes());
    }

    async fn change(
        &self,
        operation: Operation,
        action: &'static str,
        to: MachineState,
    ) -> Result<(), MachineError> {
        let verdict = self.script.ask(operation).await;
        if verdict == Verdict::Fail {
            return Err(MachineError::Refused { action, detail: "a fault was planned here".to_owned() });
        }
        let changed = self.go(to);
        verdict.finish().await;
        changed
    }

    /// Changes to running or paused.
    pub(crate) fn go(&self, to: MachineState) -> Result<(), MachineError> {
        let mut ended = None;
        self.state.send_if_modified(|state| match state {
            MachineState::Exited(exit) => {
                ended = Some(exit.clone());
                false
            }
            present if *present == to => false,
            present => {
                *present = to;
                true
            }
        });
        if let Some(exit) = ended {
            return Err(MachineError::Exited(exit));
        }
        if *self.state.borrow() == MachineState::Running {
            self.system.wake();
        }
        Ok(())
    }

    /// Reason for its end, if it has ended.
    pub(crate) fn exit(&self) -> Option<MachineExit> {
        match &*self.state.borrow() {
            MachineState::Exited(exit) => Some(exit.clone()),
            _ => None,
        }
    }

    pub(crate) fn overlays(&self) -> MutexGuard<'_, BTreeMap<String, Utf8PathBuf>> {
        self.overlays.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn sparse(&self) -> MutexGuard<'_, SparseSaves> {
        self.sparse.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn disks(&self) -> &Disks {
        &self.disks
    }

    pub(crate) const fn script(&self) -> &Script {
        &self.script
    }
}

#[async_trait]
impl Machine for FakeMachine {
    fn record(&self) -> MachineRecord {
        let driver = self.character.name().to_owned();
        MachineRecord { driver, data: serde_json::json!({ "serial": self.serial }) }
    }

    fn endpoint(&self) -> GuestEndpoint {
        GuestEndpoint::UnixSocket(self.directory.join("channel.sock"))
    }

    fn state(&self) -> watch::Receiver<MachineState> {
        self.state.subscribe()
    }

    async fn resume(&self) -> Result<(), MachineError> {
        self.change(Operation::Resume, "resume", MachineState::Running).await
    }

    async fn pause(&self) -> Result<(), MachineError> {
        self.change(Operation::Pause, "pause", MachineState::Paused).await
    }

    async fn kill(&self, deadline: Duration) -> Result<MachineExit, MachineError> {
        let verdict = self.script.ask(Operation::Kill).await;
        if verdict == Verdict::Fail {
            return Err(MachineError::Timeout { action: "end", after: deadline });
        }
        let exit = self.end(MachineExit::Killed);
        self.sparse().remove(&self.directory);
        verdict.finish().await;
        Ok(exit)
    }

    async fn counters(&self) -> Result<MachineCounters, MachineError> {
        if let Some(exit) = self.exit() {
            return Err(MachineError::Exited(exit));
        }
        Ok(MachineCounters {
            cpu_ms: u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX),
            memory_pss: 1 << 20,
            memory_rss: 2 << 20,
            ..MachineCounters::default()
        })
    }

    fn balloon(&self) -> Option<&dyn Balloon> {
        self.balloon.as_ref().map(|balloon| balloon as &dyn Balloon)
    }

    fn brancher(&self) -> Option<&dyn Brancher> {
        self.can_branch.then_some(self)
    }
}

impl Drop for FakeMachine {
    fn drop(&mut self) {
        // The processes hold the guest and the guest holds the processes: this parts them.
        self.system.halt(CloseReason::EndOfStream);
    }
}
