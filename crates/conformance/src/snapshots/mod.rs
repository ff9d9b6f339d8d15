//! Suite of every [`SnapshotStore`].
//!
//! ```text
//!  Bench (one store) ── vm ──▶ prepare ──▶ branch (made up here) ──▶ fork_point / write_snapshot
//!                                                                        └▶ source ──▶ child: disk and memory looked at
//! ```
//!
//! No machine runs: the suite writes to disks through its harness and makes up the changed pages of branches itself.

mod bench;
mod exports;
mod lives;
mod shapes;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use camino::Utf8PathBuf;
use microvm_ports::branch::{MemoryPages, StateMemory};
use microvm_ports::capabilities::MemoryShape;
use microvm_ports::hypervisor::MachineDisk;
use microvm_ports::progress::Progress;
use microvm_ports::snapshot::{BranchFiles, SnapshotStore};
use microvm_ports::storage::{StorageError, VmStorage};
use microvm_types::SnapshotId;

use self::bench::{Bench, base_of, page, snapshot_id, vm_id};
use crate::{Must, Suite};

/// A store, seen through both of its ports.
#[derive(Clone)]
pub struct SnapshotStorage {
    /// Files of VMs.
    pub vms: Arc<dyn VmStorage>,
    /// Snapshots of them.
    pub snapshots: Arc<dyn SnapshotStore>,
}

/// A part of a snapshot that can be damaged on purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SnapshotPart {
    /// The part of its state named `device-state`.
    DeviceState,
    /// The part of its state named `configuration`.
    Configuration,
    /// Its pages.
    Memory,
    /// One of its disk layers.
    Disk,
}

impl SnapshotPart {
    pub(crate) const ALL: [Self; 4] = [Self::DeviceState, Self::Configuration, Self::Memory, Self::Disk];
}

/// Gives the suite its stores, and does to their files what machines and bad days do.
#[async_trait]
pub trait SnapshotHarness: Send + Sync {
    /// A store with nothing in it.
    async fn empty(&self) -> SnapshotStorage;

    /// A store over the same files, as a restarted server opens it; `None` if it keeps nothing.
    async fn reopened(&self, storage: &SnapshotStorage) -> Option<SnapshotStorage>;

    /// Writes as a machine would: from then on the disk shows `text`. `false` if this host lacks the tool for it.
    async fn write_disk(&self, disk: &MachineDisk, text: &str) -> bool;

    /// Text that the disk shows; empty if nothing was ever written.
    async fn read_disk(&self, disk: &MachineDisk) -> String;

    /// Flips one bit in the middle of a part of a snapshot.
    async fn damage(&self, storage: &SnapshotStorage, id: &SnapshotId, part: SnapshotPart);

    /// Bytes that everything in the store takes on disk.
    async fn usage(&self, storage: &SnapshotStorage) -> u64;

    /// An empty directory for files of the suite's own.
    async fn directory(&self) -> Utf8PathBuf;

    /// Longest time one check may take.
    fn limit(&self) -> Duration {
        Duration::from_secs(60)
    }
}

/// Runs every check over stores of `harness`.
///
/// # Panics
/// If a check fails.
pub async fn run(harness: &dyn SnapshotHarness) {
    let mut suite = Suite::new("snapshots", harness.limit());
    suite.check("new overlays over a disk change nothing", overlays_change_nothing(harness)).await;
    suite
        .check("a whole memory in a file is kept, and given in every form", shapes::whole_files(harness))
        .await;
    suite
        .check(
            "changes over the save before are kept, and given in every form",
            shapes::sparse_files(harness),
        )
        .await;
    suite.check("a memory inside the state is for its own VMM", shapes::inside(harness)).await;
    suite.check("children of a fork point see that moment", fork_point(harness)).await;
    suite.check("many children get one memory file", fork_point_of_many(harness)).await;
    suite.check("a fork of a fork of a fork keeps everything", generations(harness)).await;
    suite.check("a branch kept late is still its own moment", kept_late(harness)).await;
    suite.check("a branch that cannot be is refused", bad_branches(harness)).await;
    suite.check("a snapshot is written, listed, used and removed", lives::life(harness)).await;
    suite.check("a snapshot holds only what changed", lives::incremental(harness)).await;
    suite.check("pages that became zero are zero", lives::zero_pages(harness)).await;
    suite.check("a VM booted again is saved rightly", lives::booted_again(harness)).await;
    suite.check("what others build on is not removed", lives::parents(harness)).await;
    suite.check("removal in any order breaks nothing", lives::any_order(harness)).await;
    suite.check("a VM is put back", lives::reset(harness)).await;
    suite.check("what is in use is not garbage", lives::garbage(harness)).await;
    suite.check("many use one snapshot at once while it is removed", lives::at_once(harness)).await;
    suite.check("a flipped bit is found and its place told", exports::damage(harness)).await;
    suite.check("an exported snapshot is the same elsewhere", exports::round_trip(harness)).await;
    suite.check("a bad export file is refused and leaves nothing", exports::bad_files(harness)).await;
    suite.check("a reopened store has everything", exports::reopened(harness)).await;
    suite.finish();
}

async fn overlays_change_nothing(harness: &dyn SnapshotHarness) {
    let bench = Bench::new(harness).await;
    bench.snapshots().prepare_overlays(&vm_id(9), &[]).await.must_fail("preparing a VM that is not there");
    bench.vm(1).await;
    bench.write(1, "first").await;
    let before = bench.files(1).await;
    let overlays = bench.prepare(1).await;
    assert_eq!(overlays.len(), 1, "one writable disk, {} overlays", overlays.len());
    assert_eq!(overlays[0].serial, before.scratch.serial);
    assert!(overlays[0].path.is_file(), "{} is not a file", overlays[0].path);
    let after = bench.files(1).await;
    assert_eq!(after.scratch.path, overlays[0].path, "the new overlay is not the disk");
    assert_eq!(after.scratch.backing.first(), Some(&before.scratch.path), "the old overlay is not below it");
    bench.shows(1, "first").await;
    // Never branched: the machine went on writing to what it had.
    if bench.write_to(&before.scratch, "second").await {
        bench.shows(1, "second").await;
    }
    bench.prepare(1).await;
    bench.shows(1, "second").await;
    bench.storage.vms.remove_vm_files(&vm_id(1)).await.must("removing the VM");
    bench.snapshots().collect_snapshot_garbage(0).await.must("collecting");
}

async fn fork_point(harness: &dyn SnapshotHarness) {
    let bench = Bench::new(harness).await;
    bench.vm(1).await;
    bench.write(1, "at the fork").await;
    let files = bench.branch(1, &[(3, page(1)), (4, page(2)), (900, page(3))]).await;
    // The parent runs on at once.
    bench.write(1, "after the fork").await;
    let source = bench
        .snapshots()
        .fork_point(files.clone(), 2, MemoryShape::PagesOverBase)
        .await
        .must("making a fork point");
    assert_eq!(source.parts, files.branch.parts);
    assert_eq!(source.description, files.description);
    bench.has_memory(&source, &[(3, 1), (4, 2), (5, 0), (900, 3)]);
    for child in [2, 3] {
        let made = bench.child(child, &source).await;
        assert_eq!(bench.files(child).await.scratch.backing, made.scratch.backing);
        bench.shows(child, "at the fork").await;
    }
    bench.snapshots().create_vm_files_from(&vm_id(2), &source).await.must_fail("making a child twice");
    bench.write(2, "child").await;
    bench.shows(1, "after the fork").await;
    bench.shows(3, "at the fork").await;
    // Parent gone, source gone, garbage collected: the children have all they need.
    bench.storage.vms.remove_vm_files(&vm_id(1)).await.must("removing the parent");
    drop(source);
    bench.snapshots().collect_snapshot_garbage(0).await.must("collecting");
    bench.shows(2, "child").await;
    bench.shows(3, "at the fork").await;
}

async fn fork_point_of_many(harness: &dyn SnapshotHarness) {
    let bench = Bench::new(harness).await;
    bench.vm(1).await;
    let changed: Vec<_> = (0..512).map(|number| (number * 2, page(7))).collect();
    let source = bench
        .snapshots()
        .fork_point(bench.branch(1, &changed).await, 1000, MemoryShape::PagesOverBase)
        .await
        .must("a fork point");
    assert!(source.memory.page_bytes() == 0, "2 MiB are copied into each of 1000 children");
    bench.has_memory(&source, &[(0, 7), (1, 0), (1022, 7), (1023, 0)]);
    bench.child(2, &source).await;
    // A child of the child: over a base that is not zero.
    let files = bench.branch_over(2, base_of(&source), &[(0, page(8)), (2, page(0))]).await;
    let second = bench
        .snapshots()
        .fork_point(files.clone(), 1, MemoryShape::PagesOverBase)
        .await
        .must("a fork point of a child");
    bench.has_memory(&second, &[(0, 8), (1, 0), (2, 0), (4, 7)]);
    let third =
        bench.snapshots().fork_point(files, 5000, MemoryShape::PagesOverBase).await.must("the same for many");
    assert_ne!(base_of(&third), base_of(&source));
    bench.has_memory(&third, &[(0, 8), (1, 0), (2, 0), (4, 7)]);
}

async fn generations(harness: &dyn SnapshotHarness) {
    let bench = Bench::new(harness).await;
    bench.vm(0).await;
    let mut base = bench.zero().await;
    let mut expected = Vec::new();
    for generation in 0..12u8 {
        let (number, own) = (u64::from(generation), generation + 1);
        bench.write(number, &format!("generation {generation}")).await;
        expected.push((number, own));
        // Pages of all earlier generations that are not in the base are in the child's memory as well.
        let changed: Vec<_> = expected.iter().map(|(at, value)| (*at, page(*value))).collect();
        let files = bench.branch_over(number, &base, &changed).await;
        let count = if generation % 3 == 0 { 5000 } else { 1 };
        let source =
            bench.snapshots().fork_point(files, count, MemoryShape::PagesOverBase).await.must("a fork point");
        bench.has_memory(&source, &expected);
        bench.child(number + 1, &source).await;
        bench.shows(number + 1, &format!("generation {generation}")).await;
        base = base_of(&source).to_owned();
        drop(source);
        bench.storage.vms.remove_vm_files(&vm_id(number)).await.must("removing the parent");
        bench.snapshots().collect_snapshot_garbage(0).await.must("collecting");
    }
}

async fn kept_late(harness: &dyn SnapshotHarness) {
    let bench = Bench::new(harness).await;
    bench.vm(1).await;
    bench.write(1, "one").await;
    let first = bench.branch(1, &[(1, page(1))]).await;
    bench.write(1, "two").await;
    let second = bench.branch(1, &[(1, page(2))]).await;
    bench.write(1, "three").await;
    let third = bench.branch(1, &[(1, page(3))]).await;
    bench.write(1, "four").await;
    for (files, text, value) in [(second, "two", 2), (first, "one", 1), (third, "three", 3)] {
        let source =
            bench.snapshots().fork_point(files, 1, MemoryShape::PagesOverBase).await.must("a fork point");
        bench.has_memory(&source, &[(1, value)]);
        bench.child(10 + u64::from(value), &source).await;
        bench.shows(10 + u64::from(value), text).await;
    }
    bench.shows(1, "four").await;
}

async fn bad_branches(harness: &dyn SnapshotHarness) {
    let bench = Bench::new(harness).await;
    bench.vm(1).await;
    let sound = bench.branch(1, &[(1, page(1)), (5, page(2))]).await;
    let mut cases = vec![sound.clone(); 5];
    cases[0].branch.disks.clear();
    fn pages(case: &mut BranchFiles) -> &mut MemoryPages {
        case.branch.memory.pages_mut().expect("the bench makes pages")
    }
    pages(&mut cases[1]).ranges.reverse();
    pages(&mut cases[2]).ranges[1].first = 1 << 40;
    pages(&mut cases[3]).data.truncate(4096);
    if let StateMemory::Pages { base, .. } = &mut cases[4].branch.memory {
        *base = "/nowhere/zero-4.mem".into();
    }
    for (number, case) in cases.into_iter().enumerate() {
        let error = bench
            .snapshots()
            .fork_point(case.clone(), 1, MemoryShape::PagesOverBase)
            .await
            .must_fail("forking a bad branch");
        assert!(matches!(error, StorageError::BadInput { .. }), "case {number}: {error}");
        let id = snapshot_id(1);
        bench
            .snapshots()
            .write_snapshot(&id, case, false, Progress::ignored())
            .await
            .must_fail("keeping a bad branch");
    }
    assert!(bench.list().await.is_empty(), "a refused snapshot is listed");
    bench
        .snapshots()
        .fork_point(sound, 1, MemoryShape::PagesOverBase)
        .await
        .must("the branch itself is fine");
}
