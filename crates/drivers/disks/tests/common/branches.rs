//! Branches that are made up, to be kept as snapshots.

use camino::Utf8Path;
use microvm_driver_disks::Disks;
use microvm_ports::branch::{
    Branch, BranchTimes, Compatibility, MemoryPages, PAGE_SIZE, PageRange, StateMemory,
};
use microvm_ports::capabilities::MemoryShape;
use microvm_ports::snapshot::{BranchFiles, StateDescription};
use microvm_ports::{SnapshotStore, StateParts, StorageError};
use microvm_types::{SnapshotId, VmId};

pub(crate) const MEMORY_MIB: u32 = 16;

pub(crate) fn snapshot_id(number: u64) -> SnapshotId {
    SnapshotId::from_parts(1_700_000_000_000 + number, number)
}

/// A branch with `mib` MiB changed.
pub(crate) async fn branch(
    storage: &Disks,
    vm: &VmId,
    base: &Utf8Path,
    mib: usize,
) -> Result<BranchFiles, StorageError> {
    let disks = storage.prepare_overlays(vm, &[]).await?;
    let ranges = vec![PageRange { first: 5, count: (mib << 20 >> 12) as u64 }];
    let data = (1..=251u8).cycle().take(mib * 256 * PAGE_SIZE).collect::<Vec<u8>>().into();
    let branch = Branch {
        parts: StateParts::single(vec![3; 60_000].into()),
        memory: StateMemory::Pages { base: base.to_owned(), pages: MemoryPages { ranges, data } },
        disks,
        times: BranchTimes::default(),
        ended: false,
    };
    let description = StateDescription {
        memory_mib: MEMORY_MIB,
        disk_mib: 64,
        memory: MemoryShape::PagesOverBase,
        compatibility: Compatibility::new(),
        record: serde_json::Value::Null,
    };
    Ok(BranchFiles { vm: vm.clone(), branch, description })
}

/// Everything of a store but the file that fills the disk.
pub(crate) fn usage(path: &std::path::Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let Ok(metadata) = path.symlink_metadata() else { return 0 };
    let below = std::fs::read_dir(path).into_iter().flatten().map(|entry| usage(&entry.unwrap().path()));
    metadata.blocks() * 512 + below.sum::<u64>()
}
