//! Machines: what core needs from a hypervisor (VMM).

use std::sync::Arc;

use async_trait::async_trait;
use camino::{Utf8Path, Utf8PathBuf};
use microvm_types::kernel::DeviceDiscovery;
use microvm_types::{Name, VmId};

use crate::branch::{Compatibility, IncomingState};
pub use crate::capabilities::{Abilities, Accelerator, AcceleratorKind, Capabilities, Feature, Sharing};
pub use crate::device::{Device, MachineDisk, MachineShare};
pub use crate::failure::{LaunchError, MachineError, MachineExit};
pub use crate::machine::{Balloon, Machine, MachineCounters, MachineRecord, MachineState};
use crate::storage::KernelInfo;

/// Everything needed to launch one machine; paths are absolute and complete.
#[derive(Debug, Clone)]
pub struct MachineSpec {
    /// VM that the machine belongs to.
    pub id: VmId,
    /// Its name, for process listings.
    pub name: Name,
    /// Virtual processors, at least 1.
    pub vcpus: u32,
    /// Memory in MiB.
    pub memory_mib: u32,
    /// Most processor time of the VMM in percent of one processor of the host; `None`: no limit. Refused by drivers without
    /// [`Abilities::cpu_limit`].
    pub cpu_percent: Option<u32>,
    /// Start of the machine.
    pub start: MachineStart,
    /// Devices; the guest sees those of one kind in this order. The first two disks are image and scratch disk.
    pub devices: Vec<Device>,
    /// Directory of this VM: sockets, logs and the driver's own files go there. Exists, is private to this VM.
    pub directory: Utf8PathBuf,
}

/// Disks that every machine has: image and scratch disk.
const EVERY_MACHINES_DISKS: usize = 2;

impl MachineSpec {
    /// Disks in the order in which the guest sees them.
    pub fn disks(&self) -> impl Iterator<Item = &MachineDisk> + Clone {
        self.devices.iter().filter_map(Device::disk)
    }

    /// Disks that the guest may write to, each with its number among all disks.
    pub fn writable_disks(&self) -> impl Iterator<Item = (usize, &MachineDisk)> + Clone {
        self.disks().enumerate().filter(|(_, disk)| !disk.read_only)
    }

    /// Shared folders in the order in which they were given.
    pub fn shares(&self) -> impl Iterator<Item = &MachineShare> + Clone {
        self.devices.iter().filter_map(Device::share)
    }

    /// Number of devices that count against [`Abilities::most_devices`]: all but image and scratch disk.
    #[must_use]
    pub fn further_devices(&self) -> usize {
        self.devices.len() - self.disks().count().min(EVERY_MACHINES_DISKS)
    }

    /// Puts a disk in the place of the one with its serial number; returns true if there was one.
    pub fn replace_disk(&mut self, disk: &MachineDisk) -> bool {
        let is_it = |device: &&mut Device| device.disk().is_some_and(|old| old.serial == disk.serial);
        let place = self.devices.iter_mut().find(is_it);
        place.map(|place| *place = Device::Disk(disk.clone())).is_some()
    }

    /// File that the memory is mapped over privately: zeros for a boot, that of the saved state else; `None` if there is
    /// none.
    #[must_use]
    pub fn memory_base(&self) -> Option<&Utf8Path> {
        match &self.start {
            MachineStart::Boot(boot) => boot.zero_memory.as_deref(),
            MachineStart::Incoming(state) => state.memory.file(),
        }
    }
}

/// Start of a machine.
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
    /// Source from which this kernel learns where its devices are.
    pub discovery: DeviceDiscovery,
    /// Arguments added to the driver's own.
    pub arguments: Vec<String>,
    /// Immutable file of exactly the memory's size, all zero, for drivers whose saved memory is pages over a base file
    /// ([`crate::capabilities::MemoryShape::PagesOverBase`]); `None` for others.
    pub zero_memory: Option<Utf8PathBuf>,
}

/// Starts machines on one host. One implementation per hypervisor; core holds it as `Arc<dyn Hypervisor>`.
#[async_trait]
pub trait Hypervisor: Send + Sync {
    /// Short name of the driver: `qemu`, `fake` …
    fn name(&self) -> &'static str;

    /// Abilities on this host. The host is probed once; later calls answer from memory.
    ///
    /// # Errors
    /// [`LaunchError::ProgramMissing`] and [`LaunchError::ProgramTooOld`].
    async fn probe(&self) -> Result<Capabilities, LaunchError>;

    /// Loading of saved states; `None` if this driver can neither save nor load them.
    fn loader(&self) -> Option<&dyn Loader> {
        None
    }

    /// VMMs started ahead of the state that they load; `None` if that is of no use on this host.
    fn standby(&self) -> Option<&dyn Standby> {
        None
    }

    /// Number of further machines of `memory_mib` MiB, each beginning with `own_bytes` of pages of its own, this host can back
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

/// Loads saved states.
#[async_trait]
pub trait Loader: Send + Sync {
    /// Needs of states that this driver saves on this host, of machines that boot `kernel` and have no further devices (of a
    /// machine with some, its [`crate::Brancher`] tells them: it may be of another machine type).
    ///
    /// # Errors
    /// As [`Hypervisor::probe`].
    async fn compatibility(&self, kernel: &KernelInfo) -> Result<Compatibility, LaunchError>;

    /// Refuses a state that this host cannot load, before anything is given up for it.
    ///
    /// # Errors
    /// [`LaunchError::Incompatible`] with the first need that is not met; as [`Hypervisor::probe`].
    async fn check(&self, needed: &Compatibility) -> Result<(), LaunchError>;
}

/// Starts VMMs ahead of the state that they load.
#[async_trait]
pub trait Standby: Send + Sync {
    /// True if a machine of `spec` can have a VMM ahead of its state.
    fn fits(&self, spec: &MachineSpec) -> bool;

    /// Starts a VMM that waits in the directory of `spec` for a [`Hypervisor::launch`] with the same directory, which takes
    /// less time then: the processors, memory base, devices and compatibility must be the same; states, and files of
    /// writable disks, need not be there yet and are not looked at. [`Hypervisor::sweep`] ends it. It is not found again by
    /// a later server, which must sweep it.
    ///
    /// # Errors
    /// As [`Hypervisor::launch`]; [`LaunchError::Spec`] for a machine that does not fit.
    async fn prepare(&self, spec: &MachineSpec) -> Result<(), LaunchError>;
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
