//! Snapshots on file systems that are full, small, or tell no holes. Needs root.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "tests fail by panicking, and say on standard output what they skip"
)]

mod common;

use camino::{Utf8Path, Utf8PathBuf};
use common::branches::{MEMORY_MIB, branch, snapshot_id, usage};
use common::vm_id;
use microvm_conformance::fixtures::{SmallDisk, is_root, work_in_progress};
use microvm_ports::branch::{PAGE_SIZE, StateMemory};
use microvm_ports::capabilities::MemoryShape;
use microvm_ports::snapshot::ImportLimits;
use microvm_ports::{Progress, SnapshotStore, StorageError, VmStorage};

/// A disk on which only some space is left.
struct Tight {
    ballast: Utf8PathBuf,
}

impl Tight {
    fn leave(point: &Utf8Path, kib: u64) -> Self {
        let ballast = point.join("ballast");
        let _ = std::fs::remove_file(&ballast);
        let status = rustix::fs::statvfs(point.as_std_path()).unwrap();
        let free = status.f_bavail * status.f_frsize;
        let file = std::fs::File::create(&ballast).unwrap();
        let length = free.saturating_sub(kib << 10);
        rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, length.max(1)).unwrap();
        Self { ballast }
    }
}

impl Drop for Tight {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.ballast);
    }
}

#[tokio::test]
async fn a_full_disk_at_any_point_is_told_and_harms_nothing() {
    if !is_root() {
        return;
    }
    let disk = SmallDisk::mount("80m");
    let point = Utf8Path::from_path(disk.path()).unwrap();
    let root = point.join("store");
    let storage = common::open(root.clone()).unwrap();
    let vm = vm_id(1);
    storage.create_vm_files(&vm, 64).await.unwrap();
    let zero = storage.zero_memory(MEMORY_MIB).await.unwrap();
    let first = branch(&storage, &vm, &zero, 6).await.unwrap();
    storage.write_snapshot(&snapshot_id(1), first, false, Progress::ignored()).await.unwrap();
    let elsewhere = tempfile::tempdir().unwrap();
    let export = Utf8Path::from_path(elsewhere.path()).unwrap().join("export");
    storage.export_snapshot(&snapshot_id(1), &export, Progress::ignored()).await.unwrap();
    let ready = branch(&storage, &vm, &zero, 8).await.unwrap();
    // Freezes, which takes no more than a manifest, so that what follows is compared with the same.
    drop(storage.fork_point(ready.clone(), 1, MemoryShape::PagesOverBase).await.unwrap());
    let before = storage.snapshots().await.unwrap();
    let mut refused = [0; 6];
    for kib in [0, 4, 8, 16, 32, 64, 128, 512, 1024, 3000, 5000, 7000, 9000] {
        let tight = Tight::leave(point, kib);
        let used = usage(root.as_std_path());
        let id = snapshot_id(9);
        let results = [
            storage.write_snapshot(&id, ready.clone(), true, Progress::ignored()).await.map(drop),
            storage.fork_point(ready.clone(), 1000, MemoryShape::PagesOverBase).await.map(drop),
            storage.snapshot_source(&snapshot_id(1), 1000, MemoryShape::PagesOverBase).await.map(drop),
            storage.export_snapshot(&snapshot_id(1), &point.join("e"), Progress::ignored()).await.map(drop),
            storage
                .import_snapshot(&snapshot_id(8), &export, ImportLimits::default(), Progress::ignored())
                .await
                .map(drop),
            storage.prepare_overlays(&vm_id(1), &[]).await.map(drop),
        ];
        for (step, result) in results.into_iter().enumerate() {
            match result {
                Ok(()) => {}
                Err(StorageError::DiskFull { .. }) => refused[step] += 1,
                Err(other) => panic!("step {step} with {kib} KiB: {other}"),
            }
        }
        drop(tight);
        let _ = std::fs::remove_file(point.join("e"));
        assert!(std::fs::read_dir(point).unwrap().count() == 1, "an unfinished export is left");
        assert!(work_in_progress(&root).is_empty(), "{:?}", work_in_progress(&root));
        storage.remove_snapshot(&id).await.unwrap();
        storage.remove_snapshot(&snapshot_id(8)).await.unwrap();
        storage.collect_snapshot_garbage(0).await.unwrap();
        assert_eq!(storage.snapshots().await.unwrap(), before);
        // Checksums beside layers, and tops that were made, are all that may have come.
        let now = usage(root.as_std_path());
        assert!(now <= used + (48 << 10), "{used} bytes before, {now} after, with {kib} KiB free");
        storage.vm_files(&vm).await.unwrap();
    }
    assert!(refused.iter().all(|count| *count > 0), "some step never met a full disk: {refused:?}");
    // And with space again all goes well.
    storage.write_snapshot(&snapshot_id(9), ready, false, Progress::ignored()).await.unwrap();
    for id in [1, 9] {
        assert_eq!(storage.verify_snapshot(&snapshot_id(id), Progress::ignored()).await.unwrap().damage, []);
    }
    let tight = Tight::leave(point, 0);
    storage.remove_snapshot(&snapshot_id(9)).await.unwrap();
    storage.remove_vm_files(&vm).await.unwrap();
    storage.remove_snapshot(&snapshot_id(1)).await.unwrap();
    drop(tight);
    storage.collect_snapshot_garbage(0).await.unwrap();
    assert_eq!(std::fs::read_dir(root.join("layers")).unwrap().count(), 0);
}

#[tokio::test]
async fn a_vm_on_a_full_disk_is_refused_and_leaves_nothing() {
    if !is_root() {
        return;
    }
    let disk = SmallDisk::mount("8m");
    let root = Utf8Path::from_path(disk.path()).unwrap().join("store");
    let storage = common::open(root.clone()).unwrap();
    let result = storage.create_vm_files(&vm_id(1), 64).await;
    assert!(matches!(result, Err(StorageError::DiskFull { .. })), "{result:?}");
    assert!(storage.vm_directories().await.unwrap().is_empty());
    assert_eq!(std::fs::read_dir(root.join("tmp")).unwrap().count(), 1, "only the gate");
}

#[tokio::test]
async fn a_sparse_save_is_refused_where_holes_are_not_told_page_by_page() {
    use std::os::unix::fs::FileExt;
    if !is_root() {
        return;
    }
    let root = tempfile::tempdir().unwrap();
    let root = Utf8Path::from_path(root.path()).unwrap();
    let storage = common::open(root.join("store")).unwrap();
    let vm = vm_id(1);
    storage.create_vm_files(&vm, 64).await.unwrap();
    let zero = storage.zero_memory(MEMORY_MIB).await.unwrap();
    // On ramfs lseek(2) tells of no holes.
    let disk = SmallDisk::mount_as("ramfs", "1m");
    let coarse = Utf8Path::from_path(disk.path()).unwrap();
    for (number, (directory, is_kept)) in (1..).zip([(coarse, false), (root, true)]) {
        let changes = directory.join("changes");
        let file = std::fs::File::create_new(&changes).unwrap();
        file.set_len(u64::from(MEMORY_MIB) << 20).unwrap();
        file.write_all_at(&[7; PAGE_SIZE], 5 * PAGE_SIZE as u64).unwrap();
        let mut ready = branch(&storage, &vm, &zero, 1).await.unwrap();
        ready.branch.memory = StateMemory::Sparse { changes, previous: None };
        ready.description.memory = MemoryShape::SparseFileOverPrevious;
        let written = storage.write_snapshot(&snapshot_id(number), ready, false, Progress::ignored()).await;
        assert_eq!(written.is_ok(), is_kept, "{written:?}");
        assert!(is_kept || written.unwrap_err().to_string().contains("holes of one page"));
        assert_eq!(
            std::fs::read_dir(directory).unwrap().count(),
            if is_kept { 2 } else { 1 },
            "the probe is gone"
        );
    }
}

#[tokio::test]
async fn a_snapshot_that_is_there_is_told_though_what_it_was_made_of_stays() {
    if !is_root() {
        return;
    }
    let root = tempfile::tempdir().unwrap();
    let root = Utf8Path::from_path(root.path()).unwrap().join("store");
    let storage = common::open(root.clone()).unwrap();
    let vm = vm_id(1);
    storage.create_vm_files(&vm, 64).await.unwrap();
    let zero = storage.zero_memory(MEMORY_MIB).await.unwrap();
    let mut ready = branch(&storage, &vm, &zero, 1).await.unwrap();
    let saved = root.join("vms").join(vm.as_str()).join("saved");
    std::fs::write(&saved, vec![7; (MEMORY_MIB as usize) << 20]).unwrap();
    (ready.branch.memory, ready.branch.ended) = (StateMemory::File(saved.clone()), true);
    ready.description.memory = MemoryShape::WholeFile;
    // A file that something is mounted on cannot be removed.
    let mount = |arguments: &[&str]| {
        assert!(std::process::Command::new("mount").args(arguments).status().unwrap().success())
    };
    mount(&["--bind", saved.as_str(), saved.as_str()]);
    let written = storage.write_snapshot(&snapshot_id(1), ready, false, Progress::ignored()).await;
    let unmounted = std::process::Command::new("umount").arg(&saved).status().unwrap();
    assert!(unmounted.success());
    assert_eq!(written.unwrap().id, snapshot_id(1), "its machine has ended: this is the only copy");
    assert_eq!(storage.verify_snapshot(&snapshot_id(1), Progress::ignored()).await.unwrap().damage, []);
}
