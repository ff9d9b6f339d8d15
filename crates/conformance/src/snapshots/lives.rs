//! Checks of durable snapshots from their beginning to their end.

use microvm_ports::branch::MemoryPages;
use microvm_ports::capabilities::MemoryShape;
use microvm_ports::progress::Progress;
use microvm_ports::storage::StorageError;

use super::SnapshotHarness;
use super::bench::{Bench, base_of, page, snapshot_id, vm_id};
use crate::Must;

pub(super) async fn life(harness: &dyn SnapshotHarness) {
    let bench = Bench::new(harness).await;
    assert!(bench.list().await.is_empty());
    let error = bench
        .snapshots()
        .snapshot_source(&snapshot_id(1), 1, MemoryShape::PagesOverBase)
        .await
        .must_fail("using what is not there");
    assert!(matches!(error, StorageError::UnknownSnapshot(_)), "wrong error: {error}");
    bench.snapshots().remove_snapshot(&snapshot_id(1)).await.must("removing what is not there");
    bench.vm(1).await;
    bench.write(1, "saved").await;
    let files = bench.branch(1, &[(0, page(5)), (1000, page(6))]).await;
    let (state, description) = (files.branch.parts.clone(), files.description.clone());
    let info = bench.keep(1, files).await;
    bench.write(1, "later").await;
    assert_eq!((&info.id, &info.parent), (&snapshot_id(1), &None));
    assert_eq!(info.memory_bytes, 2 * 4096);
    assert_eq!(info.sha256.len(), 64);
    assert!(info.own_bytes >= info.memory_bytes, "{} bytes of its own", info.own_bytes);
    assert_eq!(bench.list().await, [info]);
    assert_eq!(
        bench
            .snapshots()
            .verify_snapshot(&snapshot_id(1), Progress::ignored())
            .await
            .must("verifying")
            .damage,
        []
    );
    let again = bench.branch(1, &[]).await;
    bench
        .snapshots()
        .write_snapshot(&snapshot_id(1), again, false, Progress::ignored())
        .await
        .must_fail("writing a snapshot over another");
    bench.storage.vms.remove_vm_files(&vm_id(1)).await.must("removing the VM");
    for (child, count) in [(2, 1), (3, 100_000)] {
        let source = bench.source(1, count).await;
        assert_eq!((&source.parts, &source.description), (&state, &description));
        bench.has_memory(&source, &[(0, 5), (1, 0), (1000, 6)]);
        bench.child(child, &source).await;
        bench.shows(child, "saved").await;
    }
    bench.snapshots().remove_snapshot(&snapshot_id(1)).await.must("removing");
    assert!(bench.list().await.is_empty());
    bench
        .snapshots()
        .snapshot_source(&snapshot_id(1), 1, MemoryShape::PagesOverBase)
        .await
        .must_fail("using what was removed");
    bench.snapshots().collect_snapshot_garbage(0).await.must("collecting");
    bench.shows(3, "saved").await;
}

pub(super) async fn incremental(harness: &dyn SnapshotHarness) {
    let bench = Bench::new(harness).await;
    bench.vm(1).await;
    let many: Vec<_> = (0..300).map(|number| (number, page(1))).collect();
    bench.write(1, "one").await;
    let first = bench.keep(1, bench.branch(1, &many).await).await;
    assert_eq!(first.memory_bytes, 300 * 4096);
    // The machine is still mapped over zeros, so its changed pages are all of them again.
    let mut later = many.clone();
    later[7].1 = page(2);
    later.push((400, page(3)));
    bench.write(1, "two").await;
    let second = bench.keep(2, bench.branch(1, &later).await).await;
    assert_eq!(second.parent, Some(snapshot_id(1)));
    assert_eq!(second.memory_bytes, 2 * 4096, "more than what changed is kept");
    // A restored machine, over whatever base it was given.
    for (child, count) in [(2, 1), (3, 100_000)] {
        let source = bench.source(2, count).await;
        bench.has_memory(&source, &[(0, 1), (7, 2), (8, 1), (299, 1), (300, 0), (400, 3)]);
        bench.child(child, &source).await;
        bench.shows(child, "two").await;
        let mut changed: Vec<(u64, Vec<u8>)> = Vec::new();
        for (range, content) in source.memory.pages().into_iter().flat_map(MemoryPages::iter) {
            let pages = content.chunks(4096).map(<[u8]>::to_vec);
            changed.extend((range.first..).zip(pages));
        }
        changed.retain(|(number, _)| *number != 8);
        changed.push((8, page(9)));
        changed.sort();
        let files = bench.branch_over(child, base_of(&source), &changed).await;
        let third = bench.keep(10 + child, files.clone()).await;
        assert_eq!(third.parent, Some(snapshot_id(2)));
        assert_eq!(third.memory_bytes, 4096, "more than what changed is kept");
        bench.has_memory(&bench.source(10 + child, 1).await, &[(7, 2), (8, 9), (9, 1), (400, 3)]);
        let whole = bench
            .snapshots()
            .write_snapshot(&snapshot_id(20 + child), files, true, Progress::ignored())
            .await
            .must("writing a full snapshot");
        assert_eq!((whole.parent, whole.memory_bytes), (None, 301 * 4096));
        bench.has_memory(&bench.source(20 + child, 1).await, &[(7, 2), (8, 9), (9, 1), (400, 3)]);
    }
    bench.has_memory(&bench.source(1, 1).await, &[(7, 1), (8, 1), (400, 0)]);
}

pub(super) async fn zero_pages(harness: &dyn SnapshotHarness) {
    let bench = Bench::new(harness).await;
    bench.vm(1).await;
    let many: Vec<_> = (0..64).map(|number| (number, page(1))).collect();
    bench.keep(1, bench.branch(1, &many).await).await;
    let base = base_of(&bench.source(1, 100_000).await).to_owned();
    // Once written as zeros over zeros, once not there at all, once over a base that has them.
    let mut fewer = many.clone();
    fewer[3].1 = page(0);
    fewer.remove(5);
    let second = bench.keep(2, bench.branch(1, &fewer).await).await;
    assert_eq!((second.parent, second.memory_bytes), (Some(snapshot_id(1)), 0), "zeros take no space");
    let third = bench.keep(3, bench.branch_over(1, &base, &[(9, page(0))]).await).await;
    assert_eq!((third.parent, third.memory_bytes), (Some(snapshot_id(2)), 2 * 4096));
    for count in [1, 100_000] {
        bench.has_memory(&bench.source(2, count).await, &[(2, 1), (3, 0), (4, 1), (5, 0), (6, 1)]);
        bench.has_memory(&bench.source(3, count).await, &[(3, 1), (5, 1), (8, 1), (9, 0), (10, 1)]);
    }
}

pub(super) async fn booted_again(harness: &dyn SnapshotHarness) {
    let bench = Bench::new(harness).await;
    bench.vm(1).await;
    let many: Vec<_> = (0..600).map(|number| (number, page(1))).collect();
    let source = bench
        .snapshots()
        .fork_point(bench.branch(1, &many).await, 1000, MemoryShape::PagesOverBase)
        .await
        .must("a fork point");
    bench.child(2, &source).await;
    // Forked over a base, then ended and booted: over zeros now.
    bench.keep(1, bench.branch(2, &[(700, page(2))]).await).await;
    bench.has_memory(&bench.source(1, 1).await, &[(0, 0), (599, 0), (700, 2)]);
}

pub(super) async fn parents(harness: &dyn SnapshotHarness) {
    let bench = Bench::new(harness).await;
    bench.vm(1).await;
    let pages: Vec<_> = (0..100).map(|number| (number, page(1))).collect();
    bench.keep(1, bench.branch(1, &pages).await).await;
    bench.keep(2, bench.branch(1, &pages).await).await;
    let error = bench.snapshots().remove_snapshot(&snapshot_id(1)).await.must_fail("removing a parent");
    assert!(matches!(error, StorageError::InUse { .. }), "wrong error: {error}");
    assert_eq!(bench.list().await.len(), 2);
    bench.snapshots().remove_snapshot(&snapshot_id(2)).await.must("removing the child");
    bench.snapshots().remove_snapshot(&snapshot_id(1)).await.must("removing the parent");
    let orphan = bench.keep(3, bench.branch(1, &pages).await).await;
    assert_eq!(orphan.parent, None, "it builds on what is gone");
    bench.has_memory(&bench.source(3, 1).await, &[(0, 1), (99, 1), (100, 0)]);
}

pub(super) async fn any_order(harness: &dyn SnapshotHarness) {
    // VM 1, its snapshot, and a child of that: removed in each order, and what is left still works.
    for order in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
        let bench = Bench::new(harness).await;
        bench.vm(1).await;
        bench.write(1, "saved").await;
        bench.keep(1, bench.branch(1, &[(1, page(1))]).await).await;
        let source = bench.source(1, 100_000).await;
        bench.child(2, &source).await;
        drop(source);
        let mut left = vec![0, 1, 2];
        for step in order {
            match step {
                0 => bench.storage.vms.remove_vm_files(&vm_id(1)).await.must("removing the VM"),
                1 => bench.snapshots().remove_snapshot(&snapshot_id(1)).await.must("removing the snapshot"),
                _ => bench.storage.vms.remove_vm_files(&vm_id(2)).await.must("removing the child"),
            }
            left.retain(|other| *other != step);
            bench.snapshots().collect_snapshot_garbage(0).await.must("collecting");
            for other in &left {
                match other {
                    0 => bench.shows(1, "saved").await,
                    1 => {
                        let again = bench.source(1, 1).await;
                        bench.has_memory(&again, &[(0, 0), (1, 1)]);
                        bench.child(3, &again).await;
                        bench.shows(3, "saved").await;
                        bench.storage.vms.remove_vm_files(&vm_id(3)).await.must("removing");
                    }
                    _ => bench.shows(2, "saved").await,
                }
            }
        }
    }
}

pub(super) async fn reset(harness: &dyn SnapshotHarness) {
    let bench = Bench::new(harness).await;
    bench.vm(1).await;
    bench.write(1, "then").await;
    bench.keep(1, bench.branch(1, &[(1, page(1))]).await).await;
    bench.write(1, "now").await;
    let file = bench.files(1).await.directory.join("of-the-driver");
    std::fs::write(&file, "kept").must("writing a file of the driver");
    let source = bench.source(1, 1).await;
    bench.snapshots().reset_vm_files(&vm_id(7), &source).await.must_fail("putting back what is not there");
    for _ in 0..2 {
        let files = bench.snapshots().reset_vm_files(&vm_id(1), &source).await.must("putting the VM back");
        assert_eq!(files.scratch.path, bench.files(1).await.scratch.path);
        bench.shows(1, "then").await;
        bench.write(1, "again").await;
        bench.shows(1, "again").await;
        assert!(file.is_file(), "the driver's files are gone");
    }
    let overlays = std::fs::read_dir(bench.files(1).await.directory).must("listing").count();
    assert!(overlays <= 4, "{overlays} files: old disks are left");
}

pub(super) async fn garbage(harness: &dyn SnapshotHarness) {
    let bench = Bench::new(harness).await;
    bench.vm(1).await;
    bench.write(1, "saved").await;
    bench.prepare(1).await;
    bench.zero().await;
    bench.storage.vms.remove_vm_files(&vm_id(1)).await.must("removing");
    let before = bench.harness.usage(&bench.storage).await;
    bench.vm(1).await;
    bench.write(1, "saved").await;
    let many: Vec<_> = (0..512).map(|number| (number, page(1))).collect();
    let point = bench
        .snapshots()
        .fork_point(bench.branch(1, &many).await, 1000, MemoryShape::PagesOverBase)
        .await
        .must("a fork point");
    bench.keep(1, bench.branch(1, &many).await).await;
    let source = bench.source(1, 100_000).await;
    bench.storage.vms.remove_vm_files(&vm_id(1)).await.must("removing the VM");
    bench.snapshots().collect_snapshot_garbage(0).await.must("collecting");
    // Nobody but the sources names these.
    bench.has_memory(&point, &[(0, 1)]);
    bench.has_memory(&source, &[(0, 1)]);
    bench.child(2, &point).await;
    bench.shows(2, "saved").await;
    let memory = base_of(&point).to_owned();
    drop(point);
    bench.snapshots().collect_snapshot_garbage(0).await.must("collecting");
    assert!(memory.exists(), "the memory of VM 2 is gone");
    bench.storage.vms.remove_vm_files(&vm_id(2)).await.must("removing the child");
    let counted = bench.snapshots().count_snapshot_garbage(u64::MAX).await.must("counting");
    assert!(memory.exists(), "counting removes {memory}");
    let freed = bench.snapshots().collect_snapshot_garbage(u64::MAX).await.must("collecting");
    assert_eq!(counted, freed, "what was counted, and what was freed");
    assert!(freed >= 2 << 20, "{freed} bytes were freed, the memory of the fork point has 2 MiB");
    assert!(!memory.exists(), "{memory} is left");
    let cache = base_of(&source).to_owned();
    drop(source);
    bench.snapshots().collect_snapshot_garbage(u64::MAX).await.must("collecting");
    assert!(cache.exists(), "memory of a snapshot goes though there is room for it");
    bench.snapshots().collect_snapshot_garbage(0).await.must("collecting");
    assert!(!cache.exists(), "memory of a snapshot stays though there is no room for it");
    bench.has_memory(&bench.source(1, 1).await, &[(511, 1), (512, 0)]);
    bench.snapshots().remove_snapshot(&snapshot_id(1)).await.must("removing the snapshot");
    bench.snapshots().collect_snapshot_garbage(0).await.must("collecting");
    let after = bench.harness.usage(&bench.storage).await;
    assert!(after <= before + (64 << 10), "{before} bytes before, {after} after");
}

pub(super) async fn at_once(harness: &dyn SnapshotHarness) {
    let bench = Bench::new(harness).await;
    bench.vm(1).await;
    bench.write(1, "saved").await;
    let many: Vec<_> = (0..512).map(|number| (number, page(1))).collect();
    bench.keep(1, bench.branch(1, &many).await).await;
    let id = snapshot_id(1);
    let uses = (0..8).map(|_| bench.snapshots().snapshot_source(&id, 100_000, MemoryShape::PagesOverBase));
    let removal = bench.snapshots().remove_snapshot(&id);
    let collecting = bench.snapshots().collect_snapshot_garbage(0);
    let (sources, removed, collected) = futures::join!(futures::future::join_all(uses), removal, collecting);
    removed.must("removing");
    collected.must("collecting");
    let mut base = None;
    for (number, source) in (10..).zip(sources) {
        match source {
            Ok(source) => {
                assert!(base.get_or_insert(base_of(&source).to_owned()) == base_of(&source), "made twice");
                bench.has_memory(&source, &[(0, 1), (511, 1), (512, 0)]);
                bench.child(number, &source).await;
                bench.shows(number, "saved").await;
            }
            Err(error) => assert!(matches!(error, StorageError::UnknownSnapshot(_)), "wrong error: {error}"),
        }
    }
    assert!(bench.list().await.is_empty());
}
