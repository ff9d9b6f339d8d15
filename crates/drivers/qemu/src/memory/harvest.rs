//! Copies what a guest has changed, in three steps around its pause.
//!
//! ```text
//!  begin      changed pages counted, memory for them touched; where the kernel notes writes: copied
//!  complete   the guest is paused: what was written since is copied, or everything
//!  into_pages the guest runs again: both copies become one
//! ```

use std::io;
use std::time::{Duration, Instant};

use microvm_confinement::ProcessIdentity;
use microvm_ports::BranchError;
use microvm_ports::branch::{MemoryPages, PageRange};

use super::copy::{Copied, PageBuffer, total};
use super::host_memory;
use super::mapping::{Mapping, MemoryFile};
use super::merge::merge;
use super::scan::changed_pages;
use super::write_log::WriteLog;

/// Room for pages that change between counting and stopping, on top of an eighth of those counted.
const SLACK: usize = 4 << 20;
/// Memory the host keeps when changed pages are copied, in MiB.
const HOST_RESERVE_MIB: u64 = 128;

/// A harvest before the pause.
pub(crate) struct Harvest {
    mapping: Mapping,
    /// Pages that were copied already, where the kernel notes later writes.
    ahead: Option<Ahead>,
    /// For what is copied in the pause.
    buffer: PageBuffer,
}

struct Ahead {
    log: WriteLog,
    copied: Copied,
    took: Duration,
}

impl Harvest {
    /// Finds the guest's memory in a process, makes room for what has changed in it and may still change, and
    /// copies it if `ahead` is set and what is written meanwhile will be known.
    pub(crate) fn begin(
        process: ProcessIdentity,
        memory: MemoryFile,
        ahead: bool,
    ) -> Result<Self, BranchError> {
        let mapping = Mapping::find(process, memory).map_err(failed("finding it"))?;
        let changed = total(&changed_pages(&mapping).map_err(failed("looking for changed pages"))?);
        let whole = usize::try_from(memory.bytes).unwrap_or(usize::MAX);
        let slack = changed / 8 + SLACK;
        let buffer = room_for((changed + slack).min(whole))?;
        // On a host that is too short of memory for a second copy of a little, there is one.
        let late = ahead.then(|| room_for(slack.min(whole)).ok()).flatten();
        let Some(late) = late else { return Ok(Self { mapping, ahead: None, buffer }) };
        // A longer pause is better than no branch.
        let log = match WriteLog::begin(mapping) {
            Ok(log) => log,
            Err(error) => {
                tracing::info!(pid = process.pid, %error, "all of a guest's changed memory is copied in its pause");
                return Ok(Self { mapping, ahead: None, buffer });
            }
        };
        let began = Instant::now();
        let ranges = log.protect_changed().map_err(failed("having its writes noted"))?;
        let copied = fill(buffer, &mapping, ranges)?;
        let ahead = Ahead { log, copied, took: began.elapsed() };
        Ok(Self { mapping, ahead: Some(ahead), buffer: late })
    }

    /// Time that copying has taken so far; zero if nothing was copied.
    pub(crate) fn took(&self) -> Duration {
        self.ahead.as_ref().map_or(Duration::ZERO, |ahead| ahead.took)
    }

    /// To be called while the guest is paused.
    pub(crate) fn complete(self) -> Result<Harvested, BranchError> {
        let ranges = match &self.ahead {
            Some(ahead) => ahead.log.written(),
            None => changed_pages(&self.mapping),
        };
        let ranges = ranges.map_err(failed("looking for changed pages"))?;
        let copied = fill(self.buffer, &self.mapping, ranges)?;
        Ok(Harvested { mapping: self.mapping, ahead: self.ahead.map(|ahead| ahead.copied), copied })
    }
}

/// A harvest after the pause.
pub(crate) struct Harvested {
    mapping: Mapping,
    ahead: Option<Copied>,
    copied: Copied,
}

impl Harvested {
    /// All changed pages as they were in the pause.
    ///
    /// # Errors
    /// If the process has ended: then it is not known whose pages they are.
    pub(crate) fn into_pages(self) -> Result<MemoryPages, BranchError> {
        self.mapping.check_process().map_err(failed("looking whose it is"))?;
        match self.ahead {
            Some(ahead) => merge(ahead, self.copied, room_for),
            None => Ok(self.copied.into()),
        }
    }
}

/// Copies `ranges` into `buffer`, or into a larger one: a guest that was faster than the room allowed for has a longer
/// pause, nothing else.
fn fill(mut buffer: PageBuffer, mapping: &Mapping, ranges: Vec<PageRange>) -> Result<Copied, BranchError> {
    let needed = total(&ranges);
    if needed > buffer.capacity() {
        buffer = room_for(needed)?;
    }
    buffer.fill(mapping, ranges).map_err(failed("copying it"))
}

fn room_for(bytes: usize) -> Result<PageBuffer, BranchError> {
    let available_mib = host_memory::available_mib().map_err(failed("reading how much the host has"))?;
    let changed_mib = bytes as u64 >> 20;
    if changed_mib + HOST_RESERVE_MIB > available_mib {
        return Err(BranchError::NoMemory { changed_mib, available_mib });
    }
    PageBuffer::with_capacity(bytes).map_err(failed("making room for a copy"))
}

fn failed(step: &'static str) -> impl FnOnce(io::Error) -> BranchError {
    move |cause| BranchError::Memory { step, cause }
}
