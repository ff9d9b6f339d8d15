//! One fake machine.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use camino::Utf8PathBuf;
use microvm_ports::guest::{CloseReason, GuestEndpoint};
use microvm_ports::hypervisor::{
    Machine, MachineCounters, MachineError, MachineExit, MachineRecord, MachineState,
};
use microvm_types::VmId;
use tokio::sync::watch;

use crate::script::{Operation, Script, Verdict};
use crate::system::GuestSystem;

/// What machines of one VM have printed; it stays when they end.
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
}

impl FakeMachine {
    pub(crate) fn new(
        id: VmId,
        directory: Utf8PathBuf,
        serial: u64,
        system: Arc<GuestSystem>,
        console: Console,
        script: Script,
    ) -> Self {
        Self {
            id,
            directory,
            serial,
            system,
            state: watch::Sender::new(MachineState::Paused),
            console,
            started: Instant::now(),
            script,
        }
    }

    /// Name of the driver in records.
    pub(crate) const DRIVER: &'static str = "fake";

    pub(crate) fn alive(&self) -> bool {
        !matches!(*self.state.borrow(), MachineState::Exited(_))
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
        verdict.finish().await;
        ended.map_or(Ok(()), |exit| Err(MachineError::Exited(exit)))
    }
}

#[async_trait]
impl Machine for FakeMachine {
    fn record(&self) -> MachineRecord {
        MachineRecord { driver: Self::DRIVER.to_owned(), data: serde_json::json!({ "serial": self.serial }) }
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
        verdict.finish().await;
        Ok(exit)
    }

    async fn counters(&self) -> Result<MachineCounters, MachineError> {
        if let MachineState::Exited(exit) = &*self.state.borrow() {
            return Err(MachineError::Exited(exit.clone()));
        }
        Ok(MachineCounters {
            cpu_ms: u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX),
            memory_pss: 1 << 20,
            memory_rss: 2 << 20,
            ..MachineCounters::default()
        })
    }
}

impl Drop for FakeMachine {
    fn drop(&mut self) {
        // The processes hold the guest and the guest holds the processes: this parts them.
        self.system.halt(CloseReason::EndOfStream);
    }
}
