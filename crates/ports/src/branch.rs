//! Branching a living machine: its whole state at one moment, while it goes on.
//!
//! ```text
//!  running ──stop──▶ device state ─┐
//!                    new disk tops ├─▶ cont ──▶ Branch { device_state, pages } ──▶ files, children
//!                    changed pages ┘
//! ```
//!
//! Memory is seen as an immutable base file and the pages that differ from it ([`MemoryPages`]); disks as a writable top
//! over frozen layers. Both are taken in one pause, so that they never disagree.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use camino::{Utf8Path, Utf8PathBuf};
use microvm_types::ErrorKind;
use serde::{Deserialize, Serialize};

use crate::device::DeviceDiscovery;
use crate::failure::MachineError;
use crate::guest::Guest;
pub use crate::guest::InputProbe;

/// Bytes of one page of memory on x86-64 and on arm64 as distributions configure it.
pub const PAGE_SIZE: usize = 4_096;

/// Pages in a row: number of the first one from the start of the guest's memory, and how many.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PageRange {
    /// Number of the first page.
    pub first: u64,
    /// How many pages, at least one.
    pub count: u64,
}

impl PageRange {
    /// Number of the page after the last one.
    #[must_use]
    pub const fn end(&self) -> u64 {
        self.first + self.count
    }

    /// All pages of `ranges`, which may overlap, as ranges that ascend and do not touch each other.
    #[must_use]
    pub fn union(mut ranges: Vec<Self>) -> Vec<Self> {
        ranges.sort_unstable_by_key(|range| range.first);
        let mut all: Vec<Self> = Vec::with_capacity(ranges.len());
        for range in ranges {
            match all.last_mut() {
                Some(last) if range.first <= last.end() => {
                    last.count = range.end().max(last.end()) - last.first;
                }
                _ => all.push(range),
            }
        }
        all
    }
}

/// Content of some pages.
#[derive(Clone, Default)]
pub struct MemoryPages {
    /// Which pages: ascending, not touching each other.
    pub ranges: Vec<PageRange>,
    /// Their content, one after the other in the order of `ranges`.
    pub data: Bytes,
}

impl MemoryPages {
    /// How many bytes of content.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.data.len() as u64
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.data.is_empty()
    }

    /// Each range with its content.
    pub fn iter(&self) -> impl Iterator<Item = (PageRange, &[u8])> {
        let mut rest: &[u8] = &self.data;
        self.ranges.iter().map(move |range| {
            let length = usize::try_from(range.count).unwrap_or(usize::MAX).saturating_mul(PAGE_SIZE);
            let (content, after) = rest.split_at(length.min(rest.len()));
            rest = after;
            (*range, content)
        })
    }
}

impl std::fmt::Debug for MemoryPages {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "MemoryPages({} ranges, {} bytes)", self.ranges.len(), self.data.len())
    }
}

/// What must be the same where a saved state is loaded: VMM build, processor, machine … by name. Opaque to core.
pub type Compatibility = BTreeMap<String, String>;

/// The state a machine is launched from instead of booting.
#[derive(Debug, Clone)]
pub struct IncomingState {
    /// As [`Branch::device_state`] gave it.
    pub device_state: Bytes,
    /// Pages that differ from the memory base.
    pub pages: MemoryPages,
    /// How the kernel inside found its devices.
    pub discovery: DeviceDiscovery,
    /// What the state needs.
    pub compatibility: Compatibility,
}

/// An empty overlay that takes over as the top of one writable disk.
#[derive(Debug, Clone)]
pub struct NewTop {
    /// Serial number of the disk.
    pub serial: String,
    /// An empty qcow2 file of the disk's size that names no backing file it depends on.
    pub path: Utf8PathBuf,
}

/// How to branch.
pub struct BranchRequest {
    /// A new top for every writable disk.
    pub tops: Vec<NewTop>,
    /// Who is told to hold input back for the pause, and no longer; `None` if nobody is connected.
    pub guest: Option<Arc<dyn Guest>>,
    /// Leave the machine paused whatever it did before (it is going to be ended).
    pub stay_paused: bool,
}

impl std::fmt::Debug for BranchRequest {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("BranchRequest")
            .field("tops", &self.tops)
            .field("stay_paused", &self.stay_paused)
            .finish_non_exhaustive()
    }
}

/// Time of each step of a branch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct BranchTimes {
    /// From the request to stand still to the first instruction after it; zero if it stood still already.
    pub pause: Duration,
    /// Making the processors stand still.
    pub stop: Duration,
    /// Saving the device state.
    pub device_state: Duration,
    /// Switching the disks to their new tops.
    pub disks: Duration,
    /// Finding and copying the changed pages; runs beside the two above.
    pub memory: Duration,
    /// Letting the processors run.
    pub resume: Duration,
    /// Copying memory while the processors ran, before all that; zero if all of it was copied in the pause.
    #[serde(default)]
    pub ahead: Duration,
}

/// A machine's whole state at one moment.
#[derive(Debug, Clone)]
pub struct Branch {
    /// Everything but memory and disks, in the VMM's own format.
    pub device_state: Bytes,
    /// Pages that differ from the machine's memory base.
    pub pages: MemoryPages,
    /// How long what took.
    pub times: BranchTimes,
}

/// Why a branch failed. The machine does what it did before, or has ended.
#[derive(Debug, thiserror::Error)]
pub enum BranchError {
    /// The machine itself refused or ended.
    #[error(transparent)]
    Machine(#[from] MachineError),
    /// The host has no memory to copy the changed pages to.
    #[error(
        "the machine has changed {changed_mib} MiB of memory and the host has {available_mib} MiB available to copy it to: stop other VMs first"
    )]
    NoMemory {
        /// MiB changed.
        changed_mib: u64,
        /// MiB available.
        available_mib: u64,
    },
    /// Reading the machine's memory failed.
    #[error("the machine's memory could not be read while {step}: {cause}")]
    Memory {
        /// Which step.
        step: &'static str,
        /// What the system said.
        cause: std::io::Error,
    },
    /// A new disk top cannot be used.
    #[error("the new top of disk {serial} cannot be used: {detail}")]
    Disk {
        /// Which disk.
        serial: String,
        /// Why.
        detail: String,
    },
}

impl BranchError {
    /// The class of this failure.
    #[must_use]
    pub const fn kind(&self) -> ErrorKind {
        match self {
            Self::Machine(error) => error.kind(),
            Self::NoMemory { .. } => ErrorKind::Exhausted,
            Self::Memory { .. } | Self::Disk { .. } => ErrorKind::Internal,
        }
    }
}

/// Branches one living machine.
#[async_trait]
pub trait Brancher: Send + Sync {
    /// What a machine launched from a branch of this one needs.
    fn compatibility(&self) -> &Compatibility;

    /// How the kernel inside found its devices.
    fn discovery(&self) -> DeviceDiscovery;

    /// The memory file that the machine was launched over.
    fn memory_base(&self) -> &Utf8Path;

    /// Makes a writable disk independent of all layers between its top and its lowest file, while the machine runs. Returns
    /// the file name of the top that holds everything then; `None` if there was nothing to do. A branch interrupts it; it
    /// fails then and nothing has changed.
    ///
    /// # Errors
    /// See [`BranchError`].
    async fn flatten(&self, serial: &str) -> Result<Option<String>, BranchError>;

    /// Takes the machine's whole state at one moment; afterwards it does what it did before, writing to the new tops.
    /// Dropping the future does not interrupt a branch that has begun: the machine is never left standing still.
    ///
    /// # Errors
    /// See [`BranchError`]. The disks may write to their new tops already.
    async fn branch(&self, request: BranchRequest) -> Result<Branch, BranchError>;
}
