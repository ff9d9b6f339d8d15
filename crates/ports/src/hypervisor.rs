//! Machines: what core needs from a hypervisor (VMM).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use camino::Utf8PathBuf;
use microvm_types::{ErrorKind, Name, VmId};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::branch::{Brancher, Compatibility, IncomingState};
use crate::guest::GuestEndpoint;
use crate::storage::DiskFormat;

/// Everything needed to launch one machine; paths are absolute and complete.
#[derive(Debug, Clone)]
pub struct MachineSpec {
    /// Whose machine it is.
    pub id: VmId,
    /// Its name, for process listings.
    pub name: Name,
    /// Virtual processors, at least 1.
    pub vcpus: u32,
    /// Memory in MiB.
    pub memory_mib: u32,
    /// Immutable file of exactly `memory_mib` that memory is mapped over privately; all zero for a cold boot.
    pub memory_base: Utf8PathBuf,
    /// How it begins.
    pub start: MachineStart,
    /// Disks in the order the guest sees them.
    pub disks: Vec<MachineDisk>,
    /// Folders of the host that the guest may mount.
    pub shares: Vec<MachineShare>,
    /// Directory of this VM: sockets, logs and the driver's own files go there. Exists, is private to this VM.
    pub directory: Utf8PathBuf,
}

/// How a machine begins.
#[derive(Debug, Clone)]
pub enum MachineStart {
    /// From nothing.
    Boot(KernelBoot),
    /// From the state of another machine with the same processors, memory and disks.
    Incoming(IncomingState),
}

/// A kernel with its initial file system.
#[derive(Debug, Clone)]
pub struct KernelBoot {
    /// Kernel image: bzImage or uncompressed PVH ELF.
    pub kernel: Utf8PathBuf,
    /// Initial RAM file system (cpio).
    pub initramfs: Utf8PathBuf,
    /// How this kernel finds virtio-mmio devices.
    pub discovery: DeviceDiscovery,
    /// Arguments added to the driver's own.
    pub arguments: Vec<String>,
}

/// How a kernel learns where virtio-mmio devices are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DeviceDiscovery {
    /// From ACPI tables.
    Acpi,
    /// From `virtio_mmio.device=` on its command line; faster, no ACPI needed.
    CommandLine,
}

/// One disk of a machine.
#[derive(Debug, Clone)]
pub struct MachineDisk {
    /// File that holds it.
    pub path: Utf8PathBuf,
    /// Format of the file.
    pub format: DiskFormat,
    /// Files below it (qcow2 backing chain), nearest first.
    pub backing: Vec<Utf8PathBuf>,
    /// Whether the guest may not write.
    pub read_only: bool,
    /// Serial number the guest sees, at most 20 bytes.
    pub serial: String,
}

/// A folder of the host that a machine offers its guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MachineShare {
    /// The folder: absolute, and no symbolic link on the way to it.
    pub source: Utf8PathBuf,
    /// What the guest asks for to get it: 1 to 31 letters and digits, no two alike.
    pub tag: String,
    /// Whether the guest may not write. Enforced on the host.
    pub read_only: bool,
}

/// Whether and how a driver shares folders of the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FolderSharing {
    /// Not at all: a machine with shares is refused as [`LaunchError::Spec`].
    Unsupported,
    /// By 9P over virtio: the guest's kernel needs its file system. Such a machine cannot be branched.
    Plan9,
}

/// What a driver needs to find a machine again; stored as JSON with the VM, opaque to core.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineRecord {
    /// Name of the driver that made it.
    pub driver: String,
    /// The driver's own data.
    pub data: serde_json::Value,
}

/// What a machine is doing, as far as its VMM says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MachineState {
    /// Exists; processors stand still.
    Paused,
    /// Processors run.
    Running,
    /// Processors stand still because a write of the guest's found no space on the host; a resume tries that write again.
    DiskFull,
    /// Its process is gone. Nothing comes after this.
    Exited(MachineExit),
}

/// Why a machine ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MachineExit {
    /// The guest powered itself off.
    GuestShutdown,
    /// The guest reset itself. (Machines do not reboot in place.)
    GuestReset,
    /// The guest's kernel panicked.
    GuestPanic,
    /// [`Machine::kill`] ended it.
    Killed,
    /// The VMM process ended by itself or by somebody's signal; says how and, if it can, why.
    Vmm(String),
}

impl std::fmt::Display for MachineExit {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::GuestShutdown => formatter.write_str("the guest powered off"),
            Self::GuestReset => formatter.write_str("the guest reset itself"),
            Self::GuestPanic => formatter.write_str("the guest kernel panicked"),
            Self::Killed => formatter.write_str("it was ended on request"),
            Self::Vmm(how) => write!(formatter, "the VMM process ended: {how}"),
        }
    }
}

/// Counters of a running machine; all from its start.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineCounters {
    /// Processor time of the VMM process in milliseconds, guest included.
    pub cpu_ms: u64,
    /// Proportional set size of the VMM process in bytes: what it really costs the host.
    pub memory_pss: u64,
    /// Resident set size of the VMM process in bytes.
    pub memory_rss: u64,
    /// Bytes read from disks by the guest.
    pub disk_read_bytes: u64,
    /// Bytes written to disks by the guest.
    pub disk_written_bytes: u64,
    /// Read requests.
    pub disk_reads: u64,
    /// Write requests.
    pub disk_writes: u64,
}

/// What a driver can do on this host, for `doctor` and the table in the documentation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HypervisorReport {
    /// Name of the driver, for example `qemu`.
    pub driver: String,
    /// Version of the VMM program.
    pub version: String,
    /// Path of the VMM program.
    pub program: Utf8PathBuf,
    /// Accelerator in use: `kvm` or `tcg`.
    pub accelerator: String,
    /// Why this accelerator, and what it costs, in a sentence.
    pub accelerator_reason: String,
    /// Confinement layers by name, with `on` or the reason why not.
    pub confinement: BTreeMap<String, String>,
    /// Whether memory is copied before the pause of a live branch and only what is written meanwhile in it: `on`, or why
    /// not.
    pub copying_ahead: String,
}

/// Why a machine could not be launched or found again.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// The VMM program is not installed.
    #[error("{program} was not found: {advice}")]
    ProgramMissing {
        /// Program looked for.
        program: String,
        /// How to get it.
        advice: String,
    },
    /// The VMM program is older than this driver can use.
    #[error("{program} has version {found}, at least {needed} is needed: install a newer one")]
    ProgramTooOld {
        /// Program asked.
        program: String,
        /// Its version.
        found: String,
        /// The lowest version that works.
        needed: String,
    },
    /// The machine description cannot be carried out by this driver.
    #[error("this machine cannot be built: {0}")]
    Spec(String),
    /// The state was saved by another VMM build or on another processor.
    #[error(
        "the saved state needs {what} `{needed}`, here is `{here}`: restore it where it was saved, or start anew"
    )]
    Incompatible {
        /// What differs.
        what: String,
        /// What the state was saved with.
        needed: String,
        /// What is here.
        here: String,
    },
    /// A folder of the host cannot be shared.
    #[error("the folder cannot be shared: {0}")]
    Share(String),
    /// The saved state was refused by the VMM.
    #[error("the saved state could not be loaded: {0}")]
    BadState(String),
    /// The host cannot back the memory right now.
    #[error(
        "the host has {available_mib} MiB of memory available, {needed_mib} MiB are needed: stop other VMs or ask for less"
    )]
    NoMemory {
        /// MiB asked for, overhead included.
        needed_mib: u64,
        /// MiB available.
        available_mib: u64,
    },
    /// A step of starting the process failed.
    #[error("the VMM could not be started while {step}: {detail}")]
    Process {
        /// Which step.
        step: &'static str,
        /// What the host said.
        detail: String,
    },
    /// The VMM process ended before it was ready.
    #[error("the VMM ended before the machine was ready: {detail}")]
    Died {
        /// Its exit status and last words.
        detail: String,
    },
    /// The VMM did not answer in time.
    #[error("the VMM did not answer within {after:?} while {step}")]
    Timeout {
        /// Which step.
        step: &'static str,
        /// How long was waited.
        after: Duration,
    },
    /// No machine of that record exists any more.
    #[error("the machine is gone: {0}")]
    Gone(String),
}

impl LaunchError {
    /// The class of this failure.
    #[must_use]
    pub const fn kind(&self) -> ErrorKind {
        match self {
            Self::ProgramMissing { .. } | Self::ProgramTooOld { .. } | Self::Share(_) => {
                ErrorKind::Unsupported
            }
            Self::Spec(_) => ErrorKind::Invalid,
            Self::Incompatible { .. } => ErrorKind::Conflict,
            Self::BadState(_) => ErrorKind::Internal,
            Self::NoMemory { .. } => ErrorKind::Exhausted,
            Self::Process { .. } | Self::Died { .. } => ErrorKind::Internal,
            Self::Timeout { .. } => ErrorKind::Timeout,
            Self::Gone(_) => ErrorKind::NotFound,
        }
    }
}

/// Why an operation on a living machine failed.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// The machine has ended.
    #[error("the machine has ended: {0}")]
    Exited(MachineExit),
    /// The VMM refused.
    #[error("the VMM refused to {action}: {detail}")]
    Refused {
        /// What was asked of it.
        action: &'static str,
        /// Its answer.
        detail: String,
    },
    /// The VMM did not answer in time.
    #[error("the VMM did not {action} within {after:?}")]
    Timeout {
        /// What was asked of it.
        action: &'static str,
        /// How long was waited.
        after: Duration,
    },
}

impl MachineError {
    /// The class of this failure.
    #[must_use]
    pub const fn kind(&self) -> ErrorKind {
        match self {
            Self::Exited(_) => ErrorKind::Conflict,
            Self::Refused { .. } => ErrorKind::Internal,
            Self::Timeout { .. } => ErrorKind::Timeout,
        }
    }
}

/// Starts machines on one host. One implementation per hypervisor; core holds it as `Arc<dyn Hypervisor>`.
#[async_trait]
pub trait Hypervisor: Send + Sync {
    /// Short name of the driver: `qemu`, `fake` …
    fn name(&self) -> &'static str;

    /// What this host offers. Probes once; later calls answer from memory.
    ///
    /// # Errors
    /// [`LaunchError::ProgramMissing`] and [`LaunchError::ProgramTooOld`].
    async fn probe(&self) -> Result<HypervisorReport, LaunchError>;

    /// What states saved by this driver on this host need, for machines whose kernel finds its devices by `discovery`;
    /// `None` if it can neither save nor load them.
    ///
    /// # Errors
    /// As [`Hypervisor::probe`].
    async fn compatibility(&self, discovery: DeviceDiscovery) -> Result<Option<Compatibility>, LaunchError>;

    /// Whether and how machines of this driver can see folders of the host.
    fn folder_sharing(&self) -> FolderSharing {
        FolderSharing::Unsupported
    }

    /// How many more machines of `memory_mib` MiB, each beginning with `own_bytes` of pages of its own, this host can back
    /// right now: a careful guess, for refusing many at once before any is begun. `None`: not known.
    async fn room(&self, memory_mib: u32, own_bytes: u64) -> Option<usize> {
        let _ = (memory_mib, own_bytes);
        None
    }

    /// Creates a machine and leaves it paused: before its first instruction, or where its incoming state was saved. The machine outlives this process.
    /// If the future is dropped, or this process dies before it returned, no process is left that
    /// [`Hypervisor::sweep`] would not find.
    ///
    /// # Errors
    /// See [`LaunchError`]; whatever was started is ended before an error is returned.
    async fn launch(&self, spec: &MachineSpec) -> Result<Arc<dyn Machine>, LaunchError>;

    /// Whether [`Hypervisor::prepare`] can be of any use on this host; where it cannot, nobody has to make room for it.
    fn prepares(&self) -> bool {
        false
    }

    /// Starts a VMM that waits in the directory of `spec` for a [`Hypervisor::launch`] with the same directory, which takes
    /// less time then: the processors, memory base, devices and compatibility must be the same; states, and files of
    /// writable disks, need not be there yet and are not looked at. Answers `false` if this driver gains nothing by it, or
    /// not for this machine; nothing was started then. [`Hypervisor::sweep`] ends it. It is not found again by a later
    /// server, which must sweep it.
    ///
    /// # Errors
    /// As [`Hypervisor::launch`].
    async fn prepare(&self, spec: &MachineSpec) -> Result<bool, LaunchError> {
        let _ = spec;
        Ok(false)
    }

    /// Finds a machine again that an earlier server process launched.
    ///
    /// # Errors
    /// [`LaunchError::Gone`] if its process ended or is not the one recorded.
    async fn adopt(
        &self,
        id: &VmId,
        directory: &camino::Utf8Path,
        record: &MachineRecord,
    ) -> Result<Arc<dyn Machine>, LaunchError>;

    /// Ends whatever processes of this driver belong to the VM directory `directory`, recorded there or not, and what
    /// `record` (the database's) names, and waits until they are gone. Nothing there is fine; a machine that works for
    /// another directory (that of the root which this one is a copy of) is left alone.
    ///
    /// # Errors
    /// [`LaunchError::Timeout`] if a process cannot be ended.
    async fn sweep(
        &self,
        id: &VmId,
        directory: &camino::Utf8Path,
        record: Option<&MachineRecord>,
    ) -> Result<(), LaunchError>;

    /// Ends machines of this driver that work for a directory right below `folder` whose id is none of `known`, and which
    /// is not there any more or has no record of a machine: nothing tells of them, and nobody can use them. Only what is
    /// surely of this folder. Returns their ids.
    ///
    /// # Errors
    /// [`LaunchError::Timeout`] if a process cannot be ended; others if the processes of the host cannot be looked at.
    async fn end_strays(
        &self,
        folder: &camino::Utf8Path,
        known: &std::collections::HashSet<VmId>,
    ) -> Result<Vec<VmId>, LaunchError>;

    /// Bytes of the console kept in a VM directory, at most `limit`, of a machine that lives or has ended: the newest, or
    /// with `from` those at that offset and after it (the oldest that are kept if those are gone). Empty if none ever ran
    /// there. What is kept is capped by the driver.
    ///
    /// # Errors
    /// If the file is there and cannot be read.
    async fn console(
        &self,
        directory: &camino::Utf8Path,
        from: Option<u64>,
        limit: usize,
    ) -> std::io::Result<ConsolePart>;
}

/// Some of a console.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ConsolePart {
    /// Offset of the first of `bytes`, counted over all that the machines of this VM ever wrote.
    pub offset: u64,
    /// The bytes.
    pub bytes: Vec<u8>,
    /// Offset after the newest byte.
    pub end: u64,
}

/// One living machine. Methods may be called from any task, at the same time; the driver orders them.
#[async_trait]
pub trait Machine: Send + Sync {
    /// What is needed to find it again.
    fn record(&self) -> MachineRecord;

    /// Where its guest channel is reached.
    fn endpoint(&self) -> GuestEndpoint;

    /// Its state, fed by events of the VMM, never by polling.
    fn state(&self) -> watch::Receiver<MachineState>;

    /// Lets the processors run. Running already is fine.
    async fn resume(&self) -> Result<(), MachineError>;

    /// Makes the processors stand still. Standing still already is fine.
    async fn pause(&self) -> Result<(), MachineError>;

    /// Ends the machine: asks the VMM to quit, then kills the process when half of `deadline` has passed. Returns when
    /// the process is gone. A machine that has ended is fine.
    ///
    /// # Errors
    /// [`MachineError::Timeout`] if the process still exists after `deadline`.
    async fn kill(&self, deadline: Duration) -> Result<MachineExit, MachineError>;

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

    /// MiB the guest uses now.
    async fn actual_mib(&self) -> Result<u32, MachineError>;
}
