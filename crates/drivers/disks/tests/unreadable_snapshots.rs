//! Snapshots whose manifest or parent is gone: what they keep, and what can be removed.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "tests fail by panicking, and say on standard output what they skip"
)]

mod common;

use camino::Utf8Path;
use common::branches::{MEMORY_MIB, branch, snapshot_id};
use common::{Home, vm_id};
use microvm_driver_disks::Disks;
use microvm_ports::capabilities::MemoryShape;
use microvm_ports::{Progress, SnapshotStore, StateParts, StorageError, VmStorage};

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
    let damages = home.storage.verify_snapshot(&child, Progress::ignored()).await.unwrap().damage;
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
    assert_eq!(home.storage.verify_snapshot(&child, Progress::ignored()).await.unwrap().damage, []);
    home.storage.snapshot_source(&child, 1, MemoryShape::PagesOverBase).await.unwrap();
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
    assert_eq!(storage.verify_snapshot(&snapshot_id(2), Progress::ignored()).await.unwrap().damage, []);
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
async fn a_damaged_base_has_another_sum() {
    let root = tempfile::tempdir().unwrap();
    let root = Utf8Path::from_path(root.path()).unwrap().join("store");
    let storage = four(&root).await;
    let verify = async || storage.verify_snapshot(&snapshot_id(1), Progress::ignored()).await.unwrap();
    let whole = verify().await;
    assert_eq!((whole.damage, Some(whole.current_sha256)), (Vec::new(), whole.stored_sha256.clone()));
    for base in std::fs::read_dir(root.join("scratch-base")).unwrap() {
        let path = base.unwrap().path();
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
        let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, b"x", 5000).unwrap();
    }
    let damaged = verify().await;
    assert!(damaged.damage.iter().any(|damage| damage.part == "disk/base"), "{:?}", damaged.damage);
    assert_eq!(damaged.stored_sha256, whole.stored_sha256);
    assert_ne!(Some(damaged.current_sha256), damaged.stored_sha256);
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
        let found = storage.verify_snapshot(&id, Progress::ignored()).await.unwrap().damage;
        assert_eq!(found.iter().map(|damage| damage.part.as_str()).collect::<Vec<_>>(), ["manifest"]);
        assert!(found[0].detail.contains(&format!("{count} parts")), "{}", found[0].detail);
        let listed = storage.snapshots().await.unwrap();
        assert_eq!(listed.iter().filter(|snapshot| snapshot.is_err()).count(), 1);
        let source = storage.snapshot_source(&id, 1, MemoryShape::PagesOverBase).await.map(|_| ());
        assert!(matches!(source, Err(StorageError::Damaged { .. })), "{source:?}");
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
