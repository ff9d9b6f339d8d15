//! Snapshots as files: a caller that goes away, the space that they take, versions of exports.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "tests fail by panicking, and say on standard output what they skip"
)]

mod common;

use camino::Utf8Path;
use common::branches::{MEMORY_MIB, branch, snapshot_id, usage};
use common::{Home, vm_id};
use microvm_ports::snapshot::ImportLimits;
use microvm_ports::{Progress, SnapshotStore, StateParts, VmStorage};

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
        assert_eq!(home.storage.verify_snapshot(&id, Progress::ignored()).await.unwrap().damage, [], "{id}");
    }
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
