//! Branching of living machines: the whole state of one moment, while the machine runs on.
//!
//! ```text
//!  running ──stop──▶ state parts ──┐
//!                    new overlays  ├─▶ cont ──▶ Branch { parts, memory, disks } ──▶ files, children
//!                    changed pages ┘
//! ```
//!
//! Memory is seen as an immutable base file and the pages that differ from it ([`MemoryPages`]); disks as a writable overlay
//! over frozen layers. Both are taken in one pause, so that they never disagree.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use camino::{Utf8Path, Utf8PathBuf};
use microvm_types::ErrorKind;
use serde::{Deserialize, Serialize};

use crate::capabilities::{MemoryShape, SaveKind};
use crate::failure::MachineError;
pub use crate::guest::InputProbe;
use crate::state_parts::StateParts;
use crate::storage::StorageError;

/// Bytes of one page of memory on x86-64 and on arm64 as distributions configure it.
pub const PAGE_SIZE: usize = 4_096;

/// Pages in a row. Pages are numbered from the start of the guest's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PageRange {
    /// Number of the first page.
    pub first: u64,
    /// Number of pages, at least one.
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
    /// The pages: ascending ranges that do not touch each other.
    pub ranges: Vec<PageRange>,
    /// Their content, one after the other in the order of `ranges`.
    pub data: Bytes,
}

impl MemoryPages {
    /// Bytes of content.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.data.len() as u64
    }

    /// True if there are none.
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

/// Memory of a saved state.
#[derive(Debug, Clone)]
pub enum StateMemory {
    /// Pages that differ from an immutable base file of the size of the memory, which a machine maps privately.
    Pages {
        /// The base file.
        base: Utf8PathBuf,
        /// The pages.
        pages: MemoryPages,
    },
    /// One file of the size of the memory. A save puts it into [`BranchRequest::directory`], and whoever asked owns it.
    File(Utf8PathBuf),
    /// One sparse file of the size of the memory, with the pages that were written since the machine's save before, in their
    /// places. Both files are the driver's, in [`BranchRequest::directory`], and stay as they are until the machine's next
    /// save: whoever asked copies what it needs.
    Sparse {
        /// The sparse file; its holes are pages that were not written.
        changes: Utf8PathBuf,
        /// File with the whole memory at the save before; `None`: zeros, at the machine's first save.
        previous: Option<Utf8PathBuf>,
    },
    /// In the parts of the state.
    Inside,
}

impl StateMemory {
    /// Form of this memory.
    #[must_use]
    pub const fn shape(&self) -> MemoryShape {
        match self {
            Self::Pages { .. } => MemoryShape::PagesOverBase,
            Self::File(_) => MemoryShape::WholeFile,
            Self::Sparse { .. } => MemoryShape::SparseFileOverPrevious,
            Self::Inside => MemoryShape::InsideState,
        }
    }

    /// File that holds the memory, or all of it but some pages; `None` if there is none: it is inside the parts of the state,
    /// or a first save with changes only.
    #[must_use]
    pub fn file(&self) -> Option<&Utf8Path> {
        match self {
            Self::Pages { base, .. } => Some(base),
            Self::File(file) => Some(file),
            Self::Sparse { previous, .. } => previous.as_deref(),
            Self::Inside => None,
        }
    }

    /// Pages over a base; `None` for other forms.
    #[must_use]
    pub const fn pages(&self) -> Option<&MemoryPages> {
        match self {
            Self::Pages { pages, .. } => Some(pages),
            Self::File(_) | Self::Sparse { .. } | Self::Inside => None,
        }
    }

    /// As [`StateMemory::pages`], to change them.
    #[must_use]
    pub const fn pages_mut(&mut self) -> Option<&mut MemoryPages> {
        match self {
            Self::Pages { pages, .. } => Some(pages),
            Self::File(_) | Self::Sparse { .. } | Self::Inside => None,
        }
    }

    /// Bytes of pages over a base, which each machine gets for itself; zero for other forms.
    #[must_use]
    pub fn page_bytes(&self) -> u64 {
        self.pages().map_or(0, MemoryPages::len)
    }
}

/// Needs of a saved state by name; each must be met with an equal value where it is loaded: VMM build, processor, machine … by name. Opaque to core.
pub type Compatibility = BTreeMap<String, String>;

/// The state a machine is launched from instead of booting.
#[derive(Debug, Clone)]
pub struct IncomingState {
    /// As [`Branch::parts`] gave them.
    pub parts: StateParts,
    /// Its memory, in the form that the driver loads.
    pub memory: StateMemory,
    /// Needs of the state.
    pub compatibility: Compatibility,
}

/// An empty layer that takes over the writes of one writable disk; what the disk holds lies below it, and is frozen.
#[derive(Debug, Clone)]
pub struct DiskChange {
    /// Serial number of the disk.
    pub serial: String,
    /// File of the new layer, of the disk's size and in a format that the driver writes. It names no file below it that the
    /// driver would have to open by itself.
    pub path: Utf8PathBuf,
}

/// Steps around the pause of a save that are not the driver's. Given by whoever asks for a save, so that
/// a driver knows neither guests nor disk stores.
#[async_trait]
pub trait PauseSteps: Send + Sync {
    /// Holds input to the guest back until the answer is dropped, and gives a probe of the bytes on their way; `None` if
    /// nobody sends any. Called right before the processors are paused.
    async fn hold_input(&self) -> Option<InputProbe>;

    /// Makes a new layer for every writable disk, without any effect on the disks. Called once, before or inside the pause;
    /// the driver has the disks write to them inside the pause. Layers that are not used in the end do no harm.
    ///
    /// # Errors
    /// See [`StorageError`]: a disk that cannot be saved, no space.
    async fn freeze_disks(&self) -> Result<Vec<DiskChange>, StorageError>;
}

/// Manner of a save.
#[derive(Clone)]
pub struct BranchRequest {
    /// Steps that are not the driver's.
    pub steps: Arc<dyn PauseSteps>,
    /// Directory for files of the saved state: that of the VM, so that what is left there goes with it.
    pub directory: Utf8PathBuf,
    /// Leave the machine paused whatever it did before (it is going to be ended).
    pub stay_paused: bool,
}

impl std::fmt::Debug for BranchRequest {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("BranchRequest")
            .field("directory", &self.directory)
            .field("stay_paused", &self.stay_paused)
            .finish_non_exhaustive()
    }
}

/// Time of each step of a branch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct BranchTimes {
    /// From the request to pause to the first instruction after it; zero if the machine was paused already.
    pub pause: Duration,
    /// Pausing the processors.
    pub stop: Duration,
    /// Saving the device state.
    pub device_state: Duration,
    /// Switching the disks to their new overlays.
    pub disks: Duration,
    /// Finding and copying the changed pages; runs beside the two above.
    pub memory: Duration,
    /// Resuming the processors.
    pub resume: Duration,
    /// Copying memory while the processors ran, before all that; zero if all of it was copied in the pause.
    #[serde(default)]
    pub ahead: Duration,
}

/// A machine's whole state at one moment.
#[derive(Debug, Clone)]
pub struct Branch {
    /// Everything but memory and disks, in the VMM's own formats.
    pub parts: StateParts,
    /// Its memory, in the form that [`Brancher::kind`] tells.
    pub memory: StateMemory,
    /// The layers that its disks write to since; empty if it has no writable disk.
    pub disks: Vec<DiskChange>,
    /// Duration of each step.
    pub times: BranchTimes,
    /// True if the machine has ended with the save ([`SaveKind::Stops`]).
    pub ended: bool,
}

/// Failure of a branch. The machine does what it did before, or has ended.
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
        /// The step that failed.
        step: &'static str,
        /// Error of the system.
        cause: std::io::Error,
    },
    /// The disks could not be frozen.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// A new overlay of a disk cannot be used.
    #[error("the new overlay of disk {serial} cannot be used: {detail}")]
    Disk {
        /// Serial number of the disk.
        serial: String,
        /// Reason.
        detail: String,
    },
}

impl BranchError {
    /// The class of this failure.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Machine(error) => error.kind(),
            Self::Storage(error) => error.kind(),
            Self::NoMemory { .. } => ErrorKind::Exhausted,
            Self::Memory { .. } | Self::Disk { .. } => ErrorKind::Internal,
        }
    }
}

/// Branches one living machine.
#[async_trait]
pub trait Brancher: Send + Sync {
    /// Needs of a machine that is launched from a branch of this one.
    fn compatibility(&self) -> &Compatibility;

    /// Behaviour of the machine in a save, and form of the saved memory.
    fn kind(&self) -> SaveKind;

    /// Immutable file that the machine maps privately, for VMMs that wait for its children; `None` if it maps none.
    fn memory_base(&self) -> Option<&Utf8Path> {
        None
    }

    /// Shortening of chains of layers while the machine runs; `None` if this VMM cannot.
    fn flattener(&self) -> Option<&dyn Flattener> {
        None
    }

    /// Takes the machine's whole state at one moment; afterwards it does what it did before, writing to the new layers, or
    /// has ended where [`Brancher::kind`] says so. Dropping the future does not interrupt a branch that has begun: the machine is never left paused.
    ///
    /// # Errors
    /// See [`BranchError`]. The disks may write to their new overlays already.
    async fn branch(&self, request: BranchRequest) -> Result<Branch, BranchError>;
}

/// Shortens chains of layers of running machines.
#[async_trait]
pub trait Flattener: Send + Sync {
    /// Makes a writable disk independent of all layers between its overlay and its lowest file, while the machine runs. Returns
    /// the file name of the overlay that holds everything then; `None` if there was nothing to do. A branch interrupts it; it
    /// fails then and nothing has changed.
    ///
    /// # Errors
    /// See [`BranchError`].
    async fn flatten(&self, serial: &str) -> Result<Option<String>, BranchError>;
}
