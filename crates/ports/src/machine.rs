//! One living machine, as core sees it.

use std::time::Duration;

use async_trait::async_trait;
pub use microvm_types::vm::Counters as MachineCounters;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::branch::Brancher;
use crate::failure::{MachineError, MachineExit};
use crate::guest::GuestEndpoint;

/// Data by which a driver finds a machine again; stored as JSON with the VM, opaque to core.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineRecord {
    /// Name of the driver that made it.
    pub driver: String,
    /// The driver's own data.
    pub data: serde_json::Value,
}

/// State of a machine, as its VMM reports it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MachineState {
    /// The processors are paused.
    Paused,
    /// The processors run.
    Running,
    /// The processors are paused because a write of the guest found no space on the host; a resume tries that write again.
    DiskFull,
    /// Its process is gone. Nothing comes after this.
    Exited(MachineExit),
}

/// One living machine. Methods may be called from any task, at the same time; the driver orders them.
#[async_trait]
pub trait Machine: Send + Sync {
    /// Data by which its driver finds it again.
    fn record(&self) -> MachineRecord;

    /// Address of its guest channel.
    fn endpoint(&self) -> GuestEndpoint;

    /// Its state, fed by events of the VMM, never by polling.
    fn state(&self) -> watch::Receiver<MachineState>;

    /// Resumes the processors. A running machine is fine.
    async fn resume(&self) -> Result<(), MachineError>;

    /// Pauses the processors. A paused machine is fine.
    async fn pause(&self) -> Result<(), MachineError>;

    /// Ends the machine: asks the VMM to quit, then kills the process when half of `deadline` has passed. Returns when
    /// the process is gone. A machine that has ended is fine.
    ///
    /// # Errors
    /// [`MachineError::Timeout`] if the process still exists after `deadline`.
    async fn kill(&self, deadline: Duration) -> Result<MachineExit, MachineError>;

    /// Gives memory back to the host that only the boot needed. Called once the guest's agent has answered; returns at
    /// once, and memory that cannot be given back stays.
    fn booted(&self) {}

    /// Counters since the machine's start.
    async fn counters(&self) -> Result<MachineCounters, MachineError>;

    /// Branching; `None` when the hypervisor cannot.
    fn brancher(&self) -> Option<&dyn Brancher> {
        None
    }

    /// Memory ballooning; `None` when the machine has no balloon.
    fn balloon(&self) -> Option<&dyn Balloon> {
        None
    }
}

/// Gives memory back to the host and takes it again.
#[async_trait]
pub trait Balloon: Send + Sync {
    /// Asks the guest to use `memory_mib` MiB; it follows in its own time.
    async fn resize(&self, memory_mib: u32) -> Result<(), MachineError>;

    /// Waits until the guest uses exactly `memory_mib` MiB; false if it does not within that time. Safe to cancel.
    async fn reached(&self, memory_mib: u32, within: Duration) -> Result<bool, MachineError>;

    /// Waits until the guest uses another amount than `from_mib` MiB, the one before a [`Self::resize`]; false if it does not within
    /// that time: its kernel has no driver for a balloon then. Safe to cancel.
    async fn followed(&self, from_mib: u32, within: Duration) -> Result<bool, MachineError>;

    /// MiB the guest uses now.
    async fn actual_mib(&self) -> Result<u32, MachineError>;
}
