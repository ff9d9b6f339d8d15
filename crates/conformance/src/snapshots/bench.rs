//! One store with small VMs, and branches that no machine made.

use camino::{Utf8Path, Utf8PathBuf};
use microvm_ports::branch::{
    Branch, BranchTimes, Compatibility, DiskChange, MemoryPages, PAGE_SIZE, PageRange, StateMemory,
};
use microvm_ports::capabilities::MemoryShape;
use microvm_ports::hypervisor::MachineDisk;
use microvm_ports::progress::Progress;
use microvm_ports::snapshot::{BranchFiles, BranchSource, SnapshotInfo, SnapshotStore, StateDescription};
use microvm_ports::state_parts::StateParts;
use microvm_ports::storage::VmFiles;
use microvm_types::{SnapshotId, VmId};

use super::{SnapshotHarness, SnapshotStorage};
use crate::Must;

/// Memory of every VM here.
pub(super) const MEMORY_MIB: u32 = 4;
const DISK_MIB: u32 = 64;

/// Id of a VM by a small number.
pub(super) fn vm_id(number: u64) -> VmId {
    VmId::from_parts(1_700_000_000_000, number)
}

/// Id of a snapshot by a small number; in this order.
pub(super) fn snapshot_id(number: u64) -> SnapshotId {
    SnapshotId::from_parts(1_700_000_000_000 + number, number)
}

/// A page full of one value; not the same bytes everywhere, so that a shifted page is noticed.
pub(super) fn page(value: u8) -> Vec<u8> {
    let mut page = vec![value; PAGE_SIZE];
    if value != 0 {
        page[17] = value.wrapping_add(1);
    }
    page
}

/// A store under test.
pub(super) struct Bench<'a> {
    pub(super) harness: &'a dyn SnapshotHarness,
    pub(super) storage: SnapshotStorage,
}

impl<'a> Bench<'a> {
    pub(super) async fn new(harness: &'a dyn SnapshotHarness) -> Self {
        Self { harness, storage: harness.empty().await }
    }

    pub(super) fn snapshots(&self) -> &dyn SnapshotStore {
        self.storage.snapshots.as_ref()
    }

    pub(super) async fn vm(&self, number: u64) -> VmFiles {
        self.storage.vms.create_vm_files(&vm_id(number), DISK_MIB).await.must("making a VM")
    }

    pub(super) async fn files(&self, number: u64) -> VmFiles {
        self.storage.vms.vm_files(&vm_id(number)).await.must("finding the VM's files")
    }

    pub(super) async fn zero(&self) -> Utf8PathBuf {
        self.storage.vms.zero_memory(MEMORY_MIB).await.must("making zero memory")
    }

    /// Writes to a disk; `false` if this host cannot.
    pub(super) async fn write_to(&self, disk: &MachineDisk, text: &str) -> bool {
        self.harness.write_disk(disk, text).await
    }

    /// Writes to the newest overlay of a VM.
    pub(super) async fn write(&self, number: u64, text: &str) {
        let disk = self.files(number).await.scratch;
        self.write_to(&disk, text).await;
    }

    /// The disk of a VM shows what was written, where this host can write at all.
    pub(super) async fn shows(&self, number: u64, text: &str) {
        let disk = self.files(number).await.scratch;
        for file in std::iter::once(&disk.path).chain(&disk.backing) {
            assert!(file.is_file(), "{file} of VM {number} is missing");
        }
        let found = self.harness.read_disk(&disk).await;
        assert!(
            found == text || found.is_empty() && !self.can_write().await,
            "VM {number} shows `{found}`, not `{text}`"
        );
    }

    async fn can_write(&self) -> bool {
        let probe = self.harness.empty().await;
        let files = probe.vms.create_vm_files(&vm_id(1), DISK_MIB).await.must("making a VM");
        self.harness.write_disk(&files.scratch, "probe").await
    }

    pub(super) async fn prepare(&self, number: u64) -> Vec<DiskChange> {
        self.snapshots().prepare_overlays(&vm_id(number), &[]).await.must("preparing a branch")
    }

    /// A branch of a booted VM.
    pub(super) async fn branch(&self, number: u64, pages: &[(u64, Vec<u8>)]) -> BranchFiles {
        let zero = self.zero().await;
        self.branch_over(number, &zero, pages).await
    }

    /// A branch of a VM whose machine is mapped over `base`.
    pub(super) async fn branch_over(
        &self,
        number: u64,
        base: &Utf8Path,
        pages: &[(u64, Vec<u8>)],
    ) -> BranchFiles {
        let disks = self.prepare(number).await;
        let mut ranges: Vec<PageRange> = Vec::new();
        for (first, _) in pages {
            match ranges.last_mut() {
                Some(last) if last.end() == *first => last.count += 1,
                _ => ranges.push(PageRange { first: *first, count: 1 }),
            }
        }
        let data: Vec<u8> = pages.iter().flat_map(|(_, content)| content.iter().copied()).collect();
        let pages = MemoryPages { ranges, data: data.into() };
        BranchFiles {
            vm: vm_id(number),
            branch: Branch {
                parts: state_parts(),
                memory: StateMemory::Pages { base: base.to_owned(), pages },
                disks,
                times: BranchTimes::default(),
                ended: false,
            },
            description: StateDescription {
                memory_mib: MEMORY_MIB,
                disk_mib: DISK_MIB,
                memory: MemoryShape::PagesOverBase,
                compatibility: Compatibility::from([("build".to_owned(), "suite".to_owned())]),
                record: serde_json::json!({ "of": number }),
            },
        }
    }

    /// The memory a child begins with.
    pub(super) fn memory(&self, source: &BranchSource) -> Vec<u8> {
        let mut memory = std::fs::read(base_of(source)).must("reading the memory base");
        assert_eq!(memory.len(), (MEMORY_MIB as usize) << 20, "the memory base has another size");
        let mut next = 0;
        for (range, content) in source.memory.pages().into_iter().flat_map(MemoryPages::iter) {
            assert!(range.first >= next && range.count > 0, "the pages are not in order");
            next = range.end() + 1;
            let at = usize::try_from(range.first).unwrap_or(usize::MAX) * PAGE_SIZE;
            memory[at..at + content.len()].copy_from_slice(content);
        }
        memory
    }

    /// The memory of a source has these pages, and (all others being zero) no others.
    pub(super) fn has_memory(&self, source: &BranchSource, pages: &[(u64, u8)]) {
        let memory = self.memory(source);
        for (number, value) in pages {
            let at = usize::try_from(*number).unwrap_or(usize::MAX) * PAGE_SIZE;
            assert!(
                memory[at..at + PAGE_SIZE] == page(*value)[..],
                "page {number} should be full of {value}, but begins with {}",
                memory[at]
            );
        }
    }

    pub(super) async fn child(&self, number: u64, source: &BranchSource) -> VmFiles {
        self.snapshots().create_vm_files_from(&vm_id(number), source).await.must("making a child")
    }

    pub(super) async fn keep(&self, number: u64, files: BranchFiles) -> SnapshotInfo {
        self.snapshots()
            .write_snapshot(&snapshot_id(number), files, false, Progress::ignored())
            .await
            .must("writing a snapshot")
    }

    pub(super) async fn source(&self, number: u64, count: usize) -> BranchSource {
        self.snapshots()
            .snapshot_source(&snapshot_id(number), count, MemoryShape::PagesOverBase)
            .await
            .must("using a snapshot")
    }

    /// All snapshots, none damaged.
    pub(super) async fn list(&self) -> Vec<SnapshotInfo> {
        let all = self.snapshots().snapshots().await.must("listing");
        all.into_iter()
            .map(|one| one.unwrap_or_else(|(id, damage)| panic!("snapshot {id} is damaged: {damage:?}")))
            .collect()
    }
}

/// File that the machines of a source are mapped over.
/// A state of two parts: a store that keeps one only, or mixes them up, loses what a VMM needs.
fn state_parts() -> StateParts {
    let device_state: Vec<u8> = (0..20_000u32).map(|index| (index % 241) as u8).collect();
    let parts = [(StateParts::DEVICE_STATE, device_state), ("configuration", b"{\"a\": 1}".to_vec())];
    parts.into_iter().map(|(name, content)| (name.parse().must("naming a part"), content.into())).collect()
}

pub(super) fn base_of(source: &BranchSource) -> &Utf8Path {
    let Some(base) = source.memory.file() else { panic!("the memory of a source is in no file") };
    base
}
