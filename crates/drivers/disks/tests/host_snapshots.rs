//! Snapshots on bad days: a full disk, a caller that goes away.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "tests fail by panicking, and say on standard output what they skip"
)]

mod common;

use camino::{Utf8Path, Utf8PathBuf};
use common::{Home, SmallDisk, is_root, vm_id};
use microvm_driver_disks::Disks;
use microvm_ports::StateParts;
use microvm_ports::branch::{
    Branch, BranchTimes, Compatibility, MemoryPages, PAGE_SIZE, PageRange, StateMemory,
};
use microvm_ports::capabilities::MemoryShape;
use microvm_ports::snapshot::{BranchFiles, ImportLimits, StateDescription};
use microvm_ports::{Progress, SnapshotStore, StorageError, VmStorage};
use microvm_types::{SnapshotId, VmId};

const MEMORY_MIB: u32 = 16;

fn snapshot_id(number: u64) -> SnapshotId {
    SnapshotId::from_parts(1_700_000_000_000 + number, number)
}

/// A branch with `mib` MiB changed.
async fn branch(
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

fn work(root: &Utf8Path) -> Vec<String> {
    let names = std::fs::read_dir(root.join("tmp")).unwrap();
    let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name != ".gate").collect()
}

/// Everything of a store but the file that fills the disk.
fn usage(path: &std::path::Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let Ok(metadata) = path.symlink_metadata() else { return 0 };
    let below = std::fs::read_dir(path).into_iter().flatten().map(|entry| usage(&entry.unwrap().path()));
    metadata.blocks() * 512 + below.sum::<u64>()
}

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
    let point = Utf8Path::from_path(disk.0.path()).unwrap();
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
        assert!(work(&root).is_empty(), "{:?}", work(&root));
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
        assert_eq!(storage.verify_snapshot(&snapshot_id(id), Progress::ignored()).await.unwrap(), []);
    }
    let tight = Tight::leave(point, 0);
    storage.remove_snapshot(&snapshot_id(9)).await.unwrap();
    storage.remove_vm_files(&vm).await.unwrap();
    storage.remove_snapshot(&snapshot_id(1)).await.unwrap();
    drop(tight);
    storage.collect_snapshot_garbage(0).await.unwrap();
    assert_eq!(std::fs::read_dir(root.join("layers")).unwrap().count(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_caller_that_goes_away_leaves_nothing() {
    let home = Home::new();
    let vm = vm_id(1);
    home.storage.create_vm_files(&vm, 64).await.unwrap();
    let zero = home.storage.zero_memory(MEMORY_MIB).await.unwrap();
    let files = branch(&home.storage, &vm, &zero, 12).await.unwrap();
    let mut interrupted = 0;
    for round in 0..40u64 {
        let id = snapshot_id(100 + round);
        // Goes away at its n-th report.
        let (sender, mut receiver) = tokio::sync::mpsc::unbounded_channel();
        let progress = Progress::to(move |_| {
            let _ = sender.send(());
        });
        let write = home.storage.write_snapshot(&id, files.clone(), true, progress);
        let enough = async {
            for _ in 0..=round {
                if receiver.recv().await.is_none() {
                    std::future::pending::<()>().await;
                }
            }
        };
        tokio::select! {
            biased;
            done = write => { done.unwrap(); }
            () = enough => interrupted += 1,
        }
    }
    assert!(interrupted > 5, "only {interrupted} were interrupted");
    // The work notices at its next look; a new piece of work of the same kind is done after it.
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while !home.work().is_empty() {
        assert!(std::time::Instant::now() < deadline, "{:?}", home.work());
        tokio::task::yield_now().await;
    }
    for listed in home.storage.snapshots().await.unwrap() {
        let id = listed.unwrap().id;
        assert_eq!(home.storage.verify_snapshot(&id, Progress::ignored()).await.unwrap(), [], "{id}");
    }
}

#[tokio::test]
async fn a_snapshot_without_its_parent_is_refused_and_says_which_it_was() {
    let home = Home::new();
    let vm = vm_id(1);
    home.storage.create_vm_files(&vm, 1024).await.unwrap();
    let zero = home.storage.zero_memory(MEMORY_MIB).await.unwrap();
    for number in [1, 2] {
        let files = branch(&home.storage, &vm, &zero, 1).await.unwrap();
        let written =
            home.storage.write_snapshot(&snapshot_id(number), files, false, Progress::ignored()).await;
        assert_eq!(written.unwrap().parent, (number == 2).then(|| snapshot_id(1)));
    }
    // As somebody does who tidies up by hand.
    let (parent, child) = (snapshot_id(1), snapshot_id(2));
    let snapshots = home.path("store").join("snapshots");
    let aside = home.path("aside");
    std::fs::rename(snapshots.join(parent.as_str()), &aside).unwrap();
    let damages = home.storage.verify_snapshot(&child, Progress::ignored()).await.unwrap();
    assert_eq!(damages.len(), 1, "{damages:?}");
    assert_eq!(damages[0].part, "parent");
    assert!(damages[0].detail.contains(parent.as_str()), "{}", damages[0].detail);
    let Err(StorageError::Damaged { what, detail }) =
        home.storage.snapshot_source(&child, 1, MemoryShape::PagesOverBase).await
    else {
        panic!("it can be used");
    };
    assert!(what.contains(child.as_str()) && detail.contains(parent.as_str()), "{what}: {detail}");
    assert_eq!(home.work(), Vec::<String>::new(), "work is left");
    // Nothing was lost: it is whole again with its parent.
    std::fs::rename(&aside, snapshots.join(parent.as_str())).unwrap();
    assert_eq!(home.storage.verify_snapshot(&child, Progress::ignored()).await.unwrap(), []);
    home.storage.snapshot_source(&child, 1, MemoryShape::PagesOverBase).await.unwrap();
}

#[tokio::test]
async fn a_snapshot_takes_little_more_than_what_changed() {
    let home = Home::new();
    let vm = vm_id(1);
    home.storage.create_vm_files(&vm, 1024).await.unwrap();
    let zero = home.storage.zero_memory(MEMORY_MIB).await.unwrap();
    let files = branch(&home.storage, &vm, &zero, 10).await.unwrap();
    home.storage.write_snapshot(&snapshot_id(1), files, false, Progress::ignored()).await.unwrap();
    let mut files = branch(&home.storage, &vm, &zero, 10).await.unwrap();
    let pages = files.branch.memory.pages_mut().unwrap();
    let mut data = pages.data.to_vec();
    for byte in data[3 << 20..4 << 20].iter_mut() {
        *byte ^= 0x55;
    }
    pages.data = data.into();
    let before = usage(home.path("store").as_std_path());
    let info = home.storage.write_snapshot(&snapshot_id(2), files, false, Progress::ignored()).await.unwrap();
    assert_eq!((info.parent, info.memory_bytes), (Some(snapshot_id(1)), 1 << 20));
    let taken = usage(home.path("store").as_std_path()) - before;
    println!("1 MiB changed, {} KiB taken, {} KiB of its own", taken >> 10, info.own_bytes >> 10);
    assert!(taken <= (2 << 20) + (128 << 10), "{taken} bytes for 1 MiB changed");
}

#[tokio::test]
async fn a_vm_on_a_full_disk_is_refused_and_leaves_nothing() {
    if !is_root() {
        return;
    }
    let disk = SmallDisk::mount("8m");
    let root = Utf8Path::from_path(disk.0.path()).unwrap().join("store");
    let storage = common::open(root.clone()).unwrap();
    let result = storage.create_vm_files(&vm_id(1), 64).await;
    assert!(matches!(result, Err(StorageError::DiskFull { .. })), "{result:?}");
    assert!(storage.vm_directories().await.unwrap().is_empty());
    assert_eq!(std::fs::read_dir(root.join("tmp")).unwrap().count(), 1, "only the gate");
}

#[tokio::test]
async fn what_a_snapshot_that_cannot_be_read_may_build_on_stays() {
    let root = tempfile::tempdir().unwrap();
    let root = Utf8Path::from_path(root.path()).unwrap().join("store");
    let storage = common::open(root.clone()).unwrap();
    let vm = vm_id(1);
    storage.create_vm_files(&vm, 64).await.unwrap();
    let zero = storage.zero_memory(MEMORY_MIB).await.unwrap();
    for number in [1, 2] {
        let ready = branch(&storage, &vm, &zero, 1).await.unwrap();
        let written = storage.write_snapshot(&snapshot_id(number), ready, false, Progress::ignored()).await;
        assert_eq!(written.unwrap().parent, (number == 2).then(|| snapshot_id(1)));
    }
    let directory = root.join("snapshots").join(snapshot_id(2).as_str());
    let (manifest, uses) = (directory.join("manifest.json"), directory.join("uses.json"));
    let whole = std::fs::read(&manifest).unwrap();
    std::fs::write(&manifest, b"of a later version").unwrap();
    // As those of earlier versions are.
    std::fs::remove_file(&uses).unwrap();
    let refused = storage.remove_snapshot(&snapshot_id(1)).await.unwrap_err();
    assert!(matches!(&refused, StorageError::InUse { users, .. } if users.contains(snapshot_id(2).as_str())));
    let refused = storage.absorb_snapshot(&snapshot_id(1), Progress::ignored()).await.unwrap_err();
    assert!(matches!(refused, StorageError::InUse { .. }));
    std::fs::write(&manifest, whole).unwrap();
    assert_eq!(storage.verify_snapshot(&snapshot_id(2), Progress::ignored()).await.unwrap(), []);
    // One that nobody can repair can be removed, and then so can what it may have built on.
    std::fs::write(&manifest, b"lost").unwrap();
    storage.remove_snapshot(&snapshot_id(2)).await.unwrap();
    storage.remove_snapshot(&snapshot_id(1)).await.unwrap();
}

/// Snapshots 1 to 4 of one VM, each on the one before it, and its directory.
async fn four(root: &Utf8Path) -> Disks {
    let storage = common::open(root.to_owned()).unwrap();
    let vm = vm_id(1);
    storage.create_vm_files(&vm, 64).await.unwrap();
    let zero = storage.zero_memory(MEMORY_MIB).await.unwrap();
    for number in 1..=4 {
        let ready = branch(&storage, &vm, &zero, number.try_into().unwrap()).await.unwrap();
        storage.write_snapshot(&snapshot_id(number), ready, false, Progress::ignored()).await.unwrap();
    }
    storage
}

#[tokio::test]
async fn a_snapshot_that_cannot_be_read_keeps_only_what_it_builds_on() {
    let root = tempfile::tempdir().unwrap();
    let root = Utf8Path::from_path(root.path()).unwrap().join("store");
    let storage = four(&root).await;
    let directory = root.join("snapshots").join(snapshot_id(3).as_str());
    std::fs::write(directory.join("manifest.json"), b"lost").unwrap();
    let layers = || std::fs::read_dir(root.join("layers")).unwrap().count();
    let before = layers();
    // It is known to build on the second, and on nothing that builds on itself.
    storage.absorb_snapshot(&snapshot_id(1), Progress::ignored()).await.unwrap();
    let refused = storage.absorb_snapshot(&snapshot_id(2), Progress::ignored()).await.unwrap_err();
    assert!(matches!(refused, StorageError::Damaged { .. }), "{refused}");
    storage.remove_snapshot(&snapshot_id(2)).await.unwrap_err();
    storage.remove_snapshot(&snapshot_id(4)).await.unwrap();
    storage.collect_snapshot_garbage(0).await.unwrap();
    assert!(layers() <= before, "{} layers, {before} before", layers());
    let kept = storage.snapshots().await.unwrap();
    assert_eq!(kept.iter().map(Result::is_ok).collect::<Vec<_>>(), [true, false]);
    storage.remove_snapshot(&snapshot_id(3)).await.unwrap();
    storage.remove_snapshot(&snapshot_id(2)).await.unwrap();
}

#[tokio::test]
async fn of_a_snapshot_that_tells_nothing_of_itself_later_ones_go() {
    let root = tempfile::tempdir().unwrap();
    let root = Utf8Path::from_path(root.path()).unwrap().join("store");
    let storage = four(&root).await;
    for number in [2, 3] {
        let directory = root.join("snapshots").join(snapshot_id(number).as_str());
        std::fs::remove_file(directory.join("uses.json")).unwrap();
        if number == 2 {
            std::fs::write(directory.join("manifest.json"), b"lost").unwrap();
        }
    }
    storage.remove_snapshot(&snapshot_id(4)).await.unwrap();
    // Lists note what earlier versions did not.
    storage.snapshots().await.unwrap();
    assert!(root.join("snapshots").join(snapshot_id(3).as_str()).join("uses.json").exists());
    let refused = storage.remove_snapshot(&snapshot_id(1)).await.unwrap_err();
    assert!(matches!(&refused, StorageError::InUse { users, .. } if users.contains(snapshot_id(2).as_str())));
    storage.remove_snapshot(&snapshot_id(3)).await.unwrap();
}

#[tokio::test]
async fn a_manifest_with_no_state_or_too_many_parts_is_damaged() {
    let root = tempfile::tempdir().unwrap();
    let root = Utf8Path::from_path(root.path()).unwrap().join("store");
    let storage = four(&root).await;
    let (id, path) = (snapshot_id(4), root.join("snapshots").join(snapshot_id(4).as_str()));
    let path = path.join("manifest.json");
    let whole: serde_json::Value = microvm_durable::manifest::decode(&std::fs::read(&path).unwrap()).unwrap();
    let part = whole["device_state"].clone();
    let parts: serde_json::Map<_, _> =
        (0..StateParts::MOST).map(|number| (format!("part-{number}"), part.clone())).collect();
    let (mut none, mut many) = (whole.clone(), whole);
    none.as_object_mut().unwrap().remove("device_state");
    many["state_parts"] = parts.into();
    for (body, count) in [(none, 0), (many, StateParts::MOST + 1)] {
        std::fs::write(&path, microvm_durable::manifest::encode(&body)).unwrap();
        let found = storage.verify_snapshot(&id, Progress::ignored()).await.unwrap();
        assert_eq!(found.iter().map(|damage| damage.part.as_str()).collect::<Vec<_>>(), ["manifest"]);
        assert!(found[0].detail.contains(&format!("{count} parts")), "{}", found[0].detail);
        let listed = storage.snapshots().await.unwrap();
        assert_eq!(listed.iter().filter(|snapshot| snapshot.is_err()).count(), 1);
        let source = storage.snapshot_source(&id, 1, MemoryShape::PagesOverBase).await.map(|_| ());
        assert!(matches!(source, Err(StorageError::Damaged { .. })), "{source:?}");
    }
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
    let coarse = Utf8Path::from_path(disk.0.path()).unwrap();
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
async fn exports_have_the_lowest_version_that_tells_all_of_their_state() {
    let root = tempfile::tempdir().unwrap();
    let root = Utf8Path::from_path(root.path()).unwrap();
    let storage = common::open(root.join("store")).unwrap();
    let vm = vm_id(1);
    storage.create_vm_files(&vm, 64).await.unwrap();
    let zero = storage.zero_memory(MEMORY_MIB).await.unwrap();
    let needs = [("VMM", "QEMU 7.2.22"), ("machine", "microvm,acpi=off,rtc=on")];
    let single = StateParts::single(vec![3; 100].into());
    let several: StateParts = ["configuration", "state"]
        .map(|name| (name.parse().unwrap(), vec![3; 100].into()))
        .into_iter()
        .collect();
    for (number, (version, parts)) in (1..).zip([(1, single), (2, several)]) {
        let mut ready = branch(&storage, &vm, &zero, 1).await.unwrap();
        ready.branch.parts = parts;
        ready.description.compatibility = needs.map(|(name, need)| (name.to_owned(), need.to_owned())).into();
        let (id, file) = (snapshot_id(number), root.join(format!("export-{number}")));
        storage.write_snapshot(&id, ready, true, Progress::ignored()).await.unwrap();
        let manifest =
            std::fs::read(root.join("store/snapshots").join(id.as_str()).join("manifest.json")).unwrap();
        let manifest: serde_json::Value = microvm_durable::manifest::decode(&manifest).unwrap();
        assert_eq!(manifest["description"]["discovery"], "command_line", "earlier versions need it");
        storage.export_snapshot(&id, &file, Progress::ignored()).await.unwrap();
        let mut bytes = std::fs::read(&file).unwrap();
        assert_eq!(bytes[16..20], u32::to_le_bytes(version));
        let import = async |number: u64| {
            let limits = ImportLimits::default();
            storage.import_snapshot(&snapshot_id(number), &file, limits, Progress::ignored()).await
        };
        import(number + 10).await.unwrap();
        bytes[16] = 3;
        std::fs::write(&file, &bytes).unwrap();
        let refused = import(number + 20).await.unwrap_err().to_string();
        assert!(refused.contains("version 3"), "{refused}");
    }
}

#[tokio::test]
async fn what_a_snapshot_is_noted_to_build_on_follows_its_manifest() {
    let root = tempfile::tempdir().unwrap();
    let root = Utf8Path::from_path(root.path()).unwrap().join("store");
    let storage = four(&root).await;
    let uses = root.join("snapshots").join(snapshot_id(3).as_str()).join("uses.json");
    let older = std::fs::read(&uses).unwrap();
    storage.absorb_snapshot(&snapshot_id(2), Progress::ignored()).await.unwrap();
    let newer = std::fs::read(&uses).unwrap();
    assert_ne!(older, newer, "it builds on the first now");
    // As after a repair by hand from two copies.
    std::fs::write(&uses, older).unwrap();
    storage.snapshots().await.unwrap();
    assert_eq!(std::fs::read(&uses).unwrap(), newer);
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
    assert_eq!(storage.verify_snapshot(&snapshot_id(1), Progress::ignored()).await.unwrap(), []);
}
