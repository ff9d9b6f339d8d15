//! Checks of damage, of files that travel, and of what a restarted server finds.

use microvm_ports::capabilities::MemoryShape;
use microvm_ports::progress::Progress;
use microvm_ports::snapshot::ImportLimits;
use microvm_ports::storage::StorageError;

use super::bench::{Bench, page, snapshot_id, vm_id};
use super::{SnapshotHarness, SnapshotPart};
use crate::Must;

/// One VM with two snapshots.
async fn furnished(harness: &dyn SnapshotHarness) -> Bench<'_> {
    let bench = Bench::new(harness).await;
    bench.vm(1).await;
    bench.write(1, "one").await;
    let mut pages: Vec<_> = (0..200).map(|number| (number, page((number % 200) as u8 + 1))).collect();
    bench.keep(1, bench.branch(1, &pages).await).await;
    bench.write(1, "two").await;
    pages[50].1 = page(250);
    pages[60].1 = page(0);
    bench.keep(2, bench.branch(1, &pages).await).await;
    bench
}

pub(super) async fn damage(harness: &dyn SnapshotHarness) {
    for part in SnapshotPart::ALL {
        let bench = furnished(harness).await;
        // Used once, so that it was verified before.
        drop(bench.source(1, 1).await);
        let id = snapshot_id(1);
        let verify = || bench.snapshots().verify_snapshot(&id, Progress::ignored());
        let whole = verify().await.must("verifying a whole snapshot");
        let listed = bench.snapshots().snapshots().await.must("listing");
        let stored = listed[0].as_ref().map_err(|_| "it cannot be read").must("reading").sha256.clone();
        assert_eq!((whole.damage, &whole.current_sha256), (Vec::new(), &stored));
        harness.damage(&bench.storage, &snapshot_id(1), part).await;
        let verified = verify().await.must("verifying a damaged snapshot");
        let found = verified.damage;
        if part == SnapshotPart::Disk && found.is_empty() {
            // Nothing was written to a disk on this host, so no layer was kept.
            continue;
        }
        assert_eq!(found.len(), 1, "{part:?}: {found:?}");
        assert_ne!(verified.current_sha256, stored, "other content, and the same sum");
        let expected = match part {
            SnapshotPart::DeviceState => "device-state",
            SnapshotPart::Configuration => "state/configuration",
            SnapshotPart::Memory => "memory",
            SnapshotPart::Disk => "disk/",
        };
        assert!(found[0].part.starts_with(expected), "{found:?}");
        let length = found[0].end_byte - found[0].first_byte;
        assert!((1..=1 << 18).contains(&length), "one flipped bit, and {length} bytes are told: {found:?}");
        let error = bench
            .snapshots()
            .snapshot_source(&snapshot_id(1), 1, MemoryShape::PagesOverBase)
            .await
            .must_fail("using it");
        assert!(matches!(error, StorageError::Damaged { .. }), "{part:?}: wrong error: {error}");
        assert!(error.to_string().contains(expected), "it does not tell the part: {error}");
    }
}

pub(super) async fn round_trip(harness: &dyn SnapshotHarness) {
    let bench = furnished(harness).await;
    let directory = harness.directory().await;
    let file = directory.join("snapshot.microvm");
    let length = bench
        .snapshots()
        .export_snapshot(&snapshot_id(2), &file, Progress::ignored())
        .await
        .must("exporting");
    assert_eq!(std::fs::metadata(&file).must("the file").len(), length);
    bench
        .snapshots()
        .export_snapshot(&snapshot_id(2), &file, Progress::ignored())
        .await
        .must_fail("exporting over a file");
    bench
        .snapshots()
        .export_snapshot(&snapshot_id(9), &directory.join("other"), Progress::ignored())
        .await
        .must_fail("exporting what is not there");
    let here = bench.source(2, 1).await;
    let tight = ImportLimits { memory_mib: here.description.memory_mib - 1, ..ImportLimits::default() };
    let refused = bench.snapshots().import_snapshot(&snapshot_id(7), &file, tight, Progress::ignored()).await;
    assert!(
        matches!(refused, Err(StorageError::BadInput { .. })),
        "more memory than is allowed was taken in"
    );
    // Into the same store under a new id, and into another one.
    for other in [bench.storage.clone(), harness.empty().await] {
        let there = Bench { harness, storage: other };
        let id = snapshot_id(5);
        let info = there
            .snapshots()
            .import_snapshot(&id, &file, ImportLimits::default(), Progress::ignored())
            .await
            .must("importing");
        assert_eq!((&info.id, &info.parent, &info.description), (&id, &None, &here.description));
        assert_eq!(
            there.snapshots().verify_snapshot(&id, Progress::ignored()).await.must("verifying").damage,
            []
        );
        there
            .snapshots()
            .import_snapshot(&id, &file, ImportLimits::default(), Progress::ignored())
            .await
            .must_fail("importing twice");
        for (child, count) in [(21, 1), (22, 100_000)] {
            let source = there.source(5, count).await;
            assert_eq!(source.parts, here.parts);
            assert!(there.memory(&source) == bench.memory(&here), "the memory is another");
            there.child(child, &source).await;
            there.shows(child, "two").await;
        }
        there.snapshots().collect_snapshot_garbage(0).await.must("collecting");
        there.shows(21, "two").await;
        assert!(there.list().await.iter().any(|one| one.id == id));
    }
    let names = std::fs::read_dir(&directory).must("listing").count();
    assert_eq!(names, 1, "something is left beside the export");
}

pub(super) async fn bad_files(harness: &dyn SnapshotHarness) {
    let bench = furnished(harness).await;
    let directory = harness.directory().await;
    let file = directory.join("sound");
    bench.snapshots().export_snapshot(&snapshot_id(1), &file, Progress::ignored()).await.must("exporting");
    let sound = std::fs::read(&file).must("reading it");
    let there = Bench::new(harness).await;
    there.zero().await;
    there.vm(1).await;
    there.snapshots().collect_snapshot_garbage(0).await.must("collecting");
    let before = harness.usage(&there.storage).await;
    let bad = directory.join("bad");
    let length = sound.len();
    let cuts = [0, 3, 16, 20, length / 4, length / 2, length - 1];
    let mut files: Vec<(String, Vec<u8>)> =
        cuts.iter().map(|cut| (format!("cut at {cut}"), sound[..*cut].to_vec())).collect();
    for place in (0..24).map(|step| step * (length - 1) / 23) {
        let mut bytes = sound.clone();
        bytes[place] ^= 4;
        files.push((format!("a bit flipped at {place}"), bytes));
    }
    files.push(("something behind it".to_owned(), [&sound[..], b"x"].concat()));
    files.push(("no snapshot at all".to_owned(), vec![b'x'; 5000]));
    for (what, bytes) in files {
        std::fs::write(&bad, bytes).must("writing a bad file");
        let id = snapshot_id(6);
        match there.snapshots().import_snapshot(&id, &bad, ImportLimits::default(), Progress::ignored()).await
        {
            Ok(_) => panic!("{what}: it was taken in"),
            Err(error) => assert!(matches!(error, StorageError::BadInput { .. }), "{what}: {error}"),
        }
        assert!(there.list().await.is_empty(), "{what}: it is listed");
    }
    there
        .snapshots()
        .import_snapshot(
            &snapshot_id(6),
            &directory.join("absent"),
            ImportLimits::default(),
            Progress::ignored(),
        )
        .await
        .must_fail("importing nothing");
    let after = harness.usage(&there.storage).await;
    // The empty disk of an export may stay: it is shared by all of its kind.
    assert!(after <= before + (9 << 20), "{before} bytes before, {after} after");
}

pub(super) async fn reopened(harness: &dyn SnapshotHarness) {
    let bench = furnished(harness).await;
    let source = bench.source(2, 1).await;
    bench.child(2, &source).await;
    bench.write(2, "child").await;
    drop(source);
    // As if killed between a preparation and the branch.
    bench.prepare(1).await;
    let before = bench.list().await;
    let Some(storage) = harness.reopened(&bench.storage).await else { return };
    let again = Bench { harness, storage };
    assert_eq!(again.list().await, before);
    again.shows(1, "two").await;
    again.shows(2, "child").await;
    again.snapshots().collect_snapshot_garbage(0).await.must("collecting");
    again.has_memory(&again.source(2, 1).await, &[(49, 50), (50, 250), (60, 0), (61, 62)]);
    let base = again.zero().await;
    let third = again.keep(3, again.branch_over(1, &base, &[(50, page(9))]).await).await;
    again.has_memory(&again.source(3, 1).await, &[(49, 0), (50, 9)]);
    assert_eq!(third.id, snapshot_id(3));
    again.storage.vms.remove_vm_files(&vm_id(1)).await.must("removing");
}
