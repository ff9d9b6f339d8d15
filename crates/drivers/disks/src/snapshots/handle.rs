//! Content of a [`BranchSource`] of this driver.

use microvm_durable::error::bad_input;
use microvm_ports::StorageError;
use microvm_ports::snapshot::BranchSource;
use microvm_types::SnapshotId;

use crate::ground::Pin;
use crate::vms::tops::FrozenOwn;

/// Files of a state, kept from the collector for as long as this lives.
pub(crate) struct SourceHandle {
    pub(crate) disk_mib: u32,
    /// File name of the empty disk below all.
    pub(crate) base: String,
    /// Newest first.
    pub(crate) layers: Vec<String>,
    /// Disks that were the user's.
    pub(crate) own: Vec<FrozenOwn>,
    /// File name of the memory base; `None`: zeros.
    pub(crate) memory_base: Option<String>,
    pub(crate) memory_parent: Option<SnapshotId>,
    pub(crate) _pins: Vec<Pin>,
}

impl SourceHandle {
    /// The handle of a source.
    pub(crate) fn of(source: &BranchSource) -> Result<&Self, StorageError> {
        source
            .handle
            .downcast_ref()
            .ok_or_else(|| bad_input("the state", "it comes from another kind of store"))
    }
}
