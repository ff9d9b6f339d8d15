//! Writable disks of the user's in branches: what children see, what the user's file gets back, and what is refused.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "tests fail by panicking, and say what they skip"
)]

mod common;

use std::os::unix::fs::FileExt;

use camino::{Utf8Path, Utf8PathBuf};
use common::{Home, vm_id};
use microvm_ports::StateParts;
use microvm_ports::branch::{Branch, BranchTimes, Compatibility, DiskChange, MemoryPages, StateMemory};
use microvm_ports::capabilities::MemoryShape;
use microvm_ports::hypervisor::MachineDisk;
use microvm_ports::snapshot::{BranchFiles, BranchSource, StateDescription, UserDisk};
use microvm_ports::storage::LostDisks;
use microvm_ports::{Progress, SnapshotStore, StorageError, VmStorage};
use microvm_types::{ErrorKind, SnapshotId, VmId};

const CLUSTER: usize = 64 << 10;
/// Two tables of clusters, and an end in the middle of a cluster.
const SIZE: u64 = (600 << 20) + 512;
const MEMORY_MIB: u32 = 16;

fn snapshot_id(number: u64) -> SnapshotId {
    SnapshotId::from_parts(1_700_000_000_000 + number, number)
}

/// A user's file: sparse, with something at its beginning, in its second half and at its very end.
fn user_file(home: &Home) -> UserDisk {
    std::fs::create_dir_all(home.path("disks")).unwrap();
    let path = home.path("disks/user.img");
    let file = std::fs::File::create(&path).unwrap();
    file.set_len(SIZE).unwrap();
    for (at, text) in [(0, "first"), (550 << 20, "second"), (SIZE - 4, "end.")] {
        file.write_all_at(text.as_bytes(), at).unwrap();
    }
    UserDisk { serial: "data".into(), path }
}

fn at(path: &Utf8Path, place: u64, length: usize) -> String {
    let mut bytes = vec![0; length];
    std::fs::File::open(path).unwrap().read_exact_at(&mut bytes, place).unwrap();
    String::from_utf8(bytes).unwrap()
}

/// Writes a cluster to a top as a VMM would: table, then entry, at the end of the file.
fn write(top: &Utf8Path, cluster: u64, text: &str) {
    let file = std::fs::File::options().read(true).write(true).open(top).unwrap();
    let long = |at: u64| {
        let mut bytes = [0; 8];
        file.read_exact_at(&mut bytes, at).unwrap();
        u64::from_be_bytes(bytes) & 0x00ff_ffff_ffff_fe00
    };
    let append = |bytes: &[u8]| {
        let end = file.metadata().unwrap().len().next_multiple_of(CLUSTER as u64);
        file.write_all_at(bytes, end).unwrap();
        file.set_len(end + CLUSTER as u64).unwrap();
        end
    };
    let entry = long(40) + cluster / 8192 * 8;
    if long(entry) == 0 {
        let table = append(&[]);
        file.write_all_at(&(table | (1 << 63)).to_be_bytes(), entry).unwrap();
    }
    let value = if text == "zero" { 1 } else { append(text.as_bytes()) | (1 << 63) };
    file.write_all_at(&value.to_be_bytes(), long(entry) + cluster % 8192 * 8).unwrap();
}

/// A branch that its machine has made: it writes to the new tops.
async fn branch(home: &Home, vm: &VmId, own: &[UserDisk]) -> Result<BranchFiles, StorageError> {
    let base = home.storage.zero_memory(MEMORY_MIB).await.unwrap();
    // The VMM has its disks locked.
    let locked: Vec<_> = own.iter().filter_map(|disk| std::fs::File::open(&disk.path).ok()).collect();
    locked.iter().for_each(|file| file.lock().unwrap());
    let disks = home.storage.prepare_overlays(vm, own).await?;
    let branch = Branch {
        parts: StateParts::single(vec![3; 1000].into()),
        memory: StateMemory::Pages { base, pages: MemoryPages::default() },
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

fn data_top(tops: &[DiskChange]) -> &Utf8Path {
    &tops.iter().find(|top| top.serial == "data").unwrap().path
}

async fn fork(home: &Home, vm: &VmId, own: &[UserDisk]) -> (BranchSource, Utf8PathBuf) {
    let files = branch(home, vm, own).await.unwrap();
    let top = data_top(&files.branch.disks).to_owned();
    (home.storage.fork_point(files, 1, MemoryShape::PagesOverBase).await.unwrap(), top)
}

/// The same clusters and the base as QEMU would see them, newest first.
fn sees(disk: &MachineDisk) -> Vec<Utf8PathBuf> {
    std::iter::once(disk.path.clone()).chain(disk.backing.clone()).collect()
}

fn layers(home: &Home) -> usize {
    std::fs::read_dir(home.path("store/layers")).unwrap().count()
}

#[tokio::test]
async fn children_keep_the_moment_and_the_file_gets_everything_back() {
    let home = Home::new();
    let user = user_file(&home);
    let storage = &home.storage;
    let (vm, child) = (vm_id(1), vm_id(2));
    storage.create_vm_files(&vm, 64).await.unwrap();
    assert!(storage.vm_files(&vm).await.unwrap().own.is_empty(), "it uses the user's file itself");

    let (source, top) = fork(&home, &vm, std::slice::from_ref(&user)).await;
    write(&top, 1, "after the fork");
    let files = storage.create_vm_files_from(&child, &source).await.unwrap();
    drop(source);
    // The child has a top of its own over a copy; nothing of its chain is the user's file or the source's top.
    let chain = sees(&files.own[0]);
    assert_eq!((files.own[0].serial.as_str(), chain.len()), ("data", 2));
    assert!(!chain.contains(&user.path) && !chain.contains(&top), "{chain:?}");
    let copy = chain.last().unwrap();
    assert_eq!(copy.metadata().unwrap().len(), SIZE);
    assert_eq!(
        (at(copy, 0, 5), at(copy, 550 << 20, 6), at(copy, SIZE - 4, 4)),
        ("first".into(), "second".into(), "end.".into())
    );
    assert_eq!(at(&user.path, CLUSTER as u64, 5), "\0\0\0\0\0", "the file stands still");

    // A second branch costs a layer; the copy is shared.
    let (source, newer) = fork(&home, &vm, std::slice::from_ref(&user)).await;
    write(&newer, 0, "over the first");
    write(&newer, 8_800, "zero");
    write(&newer, SIZE / CLUSTER as u64, &"\0".repeat(508));
    let grandchild = vm_id(3);
    let later = storage.create_vm_files_from(&grandchild, &source).await.unwrap();
    drop(source);
    assert_eq!(sees(&later.own[0]).last(), Some(copy));
    assert_eq!(sees(&later.own[0]).len(), 3, "what was written between both branches is a layer");

    storage.write_back(&vm, LostDisks::Keep).await.unwrap();
    assert!(storage.vm_files(&vm).await.unwrap().own.is_empty());
    assert_eq!(at(&user.path, 0, 14), "over the first");
    assert_eq!(at(&user.path, CLUSTER as u64, 14), "after the fork");
    assert_eq!(at(&user.path, 550 << 20, 6), "\0\0\0\0\0\0");
    assert_eq!(user.path.metadata().unwrap().len(), SIZE);
    assert_eq!(
        (at(copy, 0, 5), at(copy, 550 << 20, 6)),
        ("first".into(), "second".into()),
        "children keep theirs"
    );
    storage.write_back(&vm, LostDisks::Keep).await.unwrap();

    // A child's copy is its own: nothing is written back, and it goes with the child, in any order.
    write(&files.own[0].path, 0, "of the child");
    storage.write_back(&child, LostDisks::Keep).await.unwrap();
    assert_eq!(at(&user.path, 0, 14), "over the first");
    assert_eq!(storage.vm_files(&child).await.unwrap().own.len(), 1);
    storage.remove_vm_files(&vm).await.unwrap();
    storage.collect_snapshot_garbage(0).await.unwrap();
    assert!(copy.exists());
    for gone in [&child, &grandchild] {
        storage.remove_vm_files(gone).await.unwrap();
    }
    storage.collect_snapshot_garbage(0).await.unwrap();
    assert_eq!(layers(&home), 0, "layers are left");
}

#[tokio::test]
async fn snapshots_hold_the_disk_and_rollback_brings_it_back() {
    let home = Home::new();
    let user = user_file(&home);
    let storage = &home.storage;
    let vm = vm_id(1);
    storage.create_vm_files(&vm, 64).await.unwrap();
    let files = branch(&home, &vm, std::slice::from_ref(&user)).await.unwrap();
    let top = data_top(&files.branch.disks).to_owned();
    storage.write_snapshot(&snapshot_id(1), files, false, Progress::ignored()).await.unwrap();
    write(&top, 0, "to be undone");
    storage.write_back(&vm, LostDisks::Keep).await.unwrap();
    assert_eq!(at(&user.path, 0, 12), "to be undone");
    assert_eq!(storage.verify_snapshot(&snapshot_id(1), Progress::ignored()).await.unwrap().damage, []);

    let export = home.path("export");
    let refused = storage.export_snapshot(&snapshot_id(1), &export, Progress::ignored()).await.unwrap_err();
    assert!(refused.to_string().contains("`data`") && !export.exists(), "{refused}");

    // Back in time: the disk is that of the snapshot, and so is the file in the end.
    let source = storage.snapshot_source(&snapshot_id(1), 1, MemoryShape::PagesOverBase).await.unwrap();
    let files = storage.reset_vm_files(&vm, &source).await.unwrap();
    write(&files.own[0].path, 2, "again");
    storage.write_back(&vm, LostDisks::Keep).await.unwrap();
    assert_eq!(
        (at(&user.path, 0, 12), at(&user.path, 2 * CLUSTER as u64, 5)),
        ("first\0\0\0\0\0\0\0".into(), "again".into())
    );
    assert_eq!((at(&user.path, 550 << 20, 6), at(&user.path, SIZE - 4, 4)), ("second".into(), "end.".into()));

    // One flipped bit in the copy is found, and nothing is made of it.
    let raw = std::fs::read_dir(home.path("store/layers")).unwrap().map(|entry| entry.unwrap().path());
    let raw = raw.into_iter().find(|path| path.extension().is_some_and(|end| end == "raw")).unwrap();
    drop(source);
    std::fs::set_permissions(&raw, std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
    std::fs::File::options().write(true).open(&raw).unwrap().write_all_at(b"F", 0).unwrap();
    let damages = storage.verify_snapshot(&snapshot_id(1), Progress::ignored()).await.unwrap().damage;
    assert_eq!(damages.len(), 1, "{damages:?}");
    assert!(matches!(
        storage.snapshot_source(&snapshot_id(1), 1, MemoryShape::PagesOverBase).await,
        Err(StorageError::Damaged { .. })
    ));
    storage.remove_snapshot(&snapshot_id(1)).await.unwrap();
    storage.remove_vm_files(&vm).await.unwrap();
    storage.collect_snapshot_garbage(0).await.unwrap();
    assert_eq!(layers(&home), 0);
}

#[tokio::test]
async fn a_file_that_others_use_or_changed_is_not_touched() {
    let home = Home::new();
    let user = user_file(&home);
    let storage = &home.storage;
    let vm = vm_id(1);
    storage.create_vm_files(&vm, 64).await.unwrap();
    let (source, top) = fork(&home, &vm, std::slice::from_ref(&user)).await;
    drop(source);
    write(&top, 1, "kept");
    let expect_refused = async |why: &str| {
        let error = storage.write_back(&vm, LostDisks::Keep).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Conflict, "{error}");
        assert!(error.to_string().contains(why), "{error}");
        assert_eq!(at(&user.path, CLUSTER as u64, 4), "\0\0\0\0");
    };
    let file = std::fs::File::options().read(true).write(true).open(&user.path).unwrap();
    file.lock().unwrap();
    expect_refused("has it open").await;
    file.unlock().unwrap();
    file.write_all_at(b"somebody", 4 * CLUSTER as u64).unwrap();
    file.set_modified(std::time::SystemTime::now() + std::time::Duration::from_secs(5)).unwrap();
    expect_refused("written to it").await;
    file.set_len(SIZE + 512).unwrap();
    expect_refused("another size").await;
    // Not there for a moment: what the VM wrote is kept, unless it is given up.
    std::fs::rename(&user.path, user.path.with_extension("old")).unwrap();
    let error = storage.write_back(&vm, LostDisks::Keep).await.unwrap_err();
    assert!(error.to_string().contains("not there"), "{error}");
    assert_eq!(storage.vm_files(&vm).await.unwrap().own.len(), 1);
    // Nor is it given up while its file system may only not be mounted: its directory is gone with it.
    let (folder, aside) = (home.path("disks"), home.path("unmounted"));
    std::fs::rename(&folder, &aside).unwrap();
    let error = storage.write_back(&vm, LostDisks::GiveUpRemoved).await.unwrap_err();
    assert!(error.to_string().contains("not mounted"), "{error}");
    assert_eq!(storage.vm_files(&vm).await.unwrap().own.len(), 1);
    std::fs::rename(&aside, &folder).unwrap();
    storage.write_back(&vm, LostDisks::GiveUpRemoved).await.unwrap();
    assert!(storage.vm_files(&vm).await.unwrap().own.is_empty());
}

#[tokio::test]
async fn what_failed_or_cannot_be_leaves_nothing() {
    let home = Home::new();
    let user = user_file(&home);
    let storage = &home.storage;
    let vm = vm_id(1);
    storage.create_vm_files(&vm, 64).await.unwrap();
    // A branch that was prepared and never made: the file has everything, and the next branch is whole.
    branch(&home, &vm, std::slice::from_ref(&user)).await.unwrap();
    let file = std::fs::File::options().write(true).open(&user.path).unwrap();
    file.write_all_at(b"the VMM", CLUSTER as u64).unwrap();
    let (source, top) = fork(&home, &vm, std::slice::from_ref(&user)).await;
    let child = storage.create_vm_files_from(&vm_id(2), &source).await.unwrap();
    assert_eq!(at(sees(&child.own[0]).last().unwrap(), CLUSTER as u64, 7), "the VMM");
    write(&top, 3, "more");
    storage.write_back(&vm, LostDisks::Keep).await.unwrap();
    assert_eq!(
        (at(&user.path, CLUSTER as u64, 7), at(&user.path, 3 * CLUSTER as u64, 4)),
        ("the VMM".into(), "more".into())
    );

    let names = || {
        let entries = std::fs::read_dir(home.path("store/vms").join(vm.as_str())).unwrap();
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        names
    };
    let before = names();
    let qcow2 = UserDisk { serial: "other".into(), path: user.path.with_extension("qcow2") };
    std::fs::copy(home.path("store/vms").join(vm.as_str()).join("scratch.qcow2"), &qcow2.path)
        .unwrap_or_default();
    let missing = UserDisk { serial: "gone".into(), path: user.path.with_extension("gone") };
    for bad in [missing, qcow2] {
        let error = branch(&home, &vm, &[bad]).await.map(drop).unwrap_err();
        assert!(matches!(error, StorageError::BadInput { .. }), "{error}");
        assert_eq!(names(), before, "something is left of it");
    }
    // A file that took the name of the one that the VM has is not branched.
    let other = user.path.with_extension("other");
    std::fs::copy(&user.path, &other).unwrap();
    let replaced = UserDisk { serial: "replaced".into(), path: other };
    let error = storage.prepare_overlays(&vm, &[replaced]).await.map(drop).unwrap_err();
    assert!(error.to_string().contains("another file"), "{error}");
    // A top that is not one of ours any more is never written back, not even the part that can be read.
    let (_, top) = fork(&home, &vm, std::slice::from_ref(&user)).await;
    write(&top, 1, "its first part");
    write(&top, 9000, "its second");
    let file = std::fs::File::options().read(true).write(true).open(&top).unwrap();
    let mut entry = [0; 8];
    file.read_exact_at(&mut entry, 40).unwrap();
    file.write_all_at(&(1u64 << 50).to_be_bytes(), u64::from_be_bytes(entry) + 8).unwrap();
    assert!(storage.write_back(&vm, LostDisks::Keep).await.is_err());
    assert_eq!(at(&user.path, CLUSTER as u64, 7), "the VMM");
    std::fs::write(&top, b"garbage of a VMM").unwrap();
    assert!(storage.write_back(&vm, LostDisks::Keep).await.is_err());
    assert_eq!(at(&user.path, CLUSTER as u64, 7), "the VMM");
}

/// Name of the variable that tells the child process where its store is.
const CHILD_STORE: &str = "MICROVM_TEST_WRITE_BACK";
/// Clusters that are to be written back: some ten milliseconds' worth.
const CHANGED: u64 = 1_500;

/// The child: says when it begins to write back, and when it has.
#[tokio::test]
async fn child_that_writes_back_until_it_is_killed() {
    let Ok(path) = std::env::var(CHILD_STORE) else { return };
    let storage = common::open(path.into()).unwrap();
    println!("begins");
    storage.write_back(&vm_id(1), LostDisks::Keep).await.unwrap();
    println!("done");
}

/// Starts the child on the store of `home`; whether it was done before it was killed.
fn killed_after(home: &Home, wait: std::time::Duration) -> bool {
    use std::io::{BufRead as _, BufReader};
    let mut child = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child_that_writes_back_until_it_is_killed", "--nocapture"])
        .env(CHILD_STORE, home.path("store").as_str())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
    assert!(lines.any(|line| line.contains("begins")), "the child did not begin");
    std::thread::sleep(wait);
    child.kill().unwrap();
    child.wait().unwrap();
    lines.any(|line| line.contains("done"))
}

#[tokio::test]
async fn a_write_back_that_was_killed_at_any_point_is_done_again() {
    let mut interrupted = 0;
    for round in 0..12 {
        let home = Home::new();
        let user = user_file(&home);
        let vm = vm_id(1);
        home.storage.create_vm_files(&vm, 64).await.unwrap();
        let (source, top) = fork(&home, &vm, std::slice::from_ref(&user)).await;
        drop(source);
        for cluster in 1..=CHANGED {
            write(&top, cluster, &format!("cluster {cluster}"));
        }
        let done = killed_after(&home, std::time::Duration::from_millis(round * 10));
        interrupted += u32::from(!done);
        // The next server, whatever the last one came to.
        let storage = common::open(home.path("store")).unwrap();
        storage.write_back(&vm, LostDisks::Keep).await.unwrap();
        assert!(storage.vm_files(&vm).await.unwrap().own.is_empty(), "it is not done");
        for cluster in 1..=CHANGED {
            let expected = format!("cluster {cluster}");
            assert_eq!(at(&user.path, cluster * CLUSTER as u64, expected.len()), expected, "round {round}");
        }
        assert_eq!(at(&user.path, 0, 5) + &at(&user.path, SIZE - 4, 4), "firstend.", "round {round}");
    }
    println!("{interrupted} of 12 were killed before they were done");
    assert!(interrupted > 0, "none was killed in the middle");
}

#[tokio::test]
async fn a_file_with_half_of_what_the_vm_wrote_is_not_left_so() {
    for round in 0..60 {
        let home = Home::new();
        let user = user_file(&home);
        let vm = vm_id(1);
        home.storage.create_vm_files(&vm, 64).await.unwrap();
        let (source, top) = fork(&home, &vm, std::slice::from_ref(&user)).await;
        drop(source);
        for cluster in 1..=CHANGED {
            write(&top, cluster, &format!("cluster {cluster}"));
        }
        killed_after(&home, std::time::Duration::from_millis(round * 5));
        let written = |cluster: u64| at(&user.path, cluster * CLUSTER as u64, 8) == "cluster ";
        if !written(1) || written(CHANGED) {
            continue;
        }
        // It was killed in the middle. Neither who gives the rest up nor anybody else leaves the file half written.
        let storage = common::open(home.path("store")).unwrap();
        let file = std::fs::File::open(&user.path).unwrap();
        file.lock().unwrap();
        for lost in [LostDisks::Forget, LostDisks::Keep, LostDisks::GiveUpRemoved] {
            let error = storage.write_back(&vm, lost).await.unwrap_err();
            assert!(matches!(error, StorageError::HalfWrittenBack { .. }), "{error}");
            assert_eq!(error.kind(), ErrorKind::Conflict);
            assert_eq!(storage.vm_files(&vm).await.unwrap().own.len(), 1, "the VM keeps all of it");
        }
        file.unlock().unwrap();
        if round % 2 == 0 {
            storage.write_back(&vm, LostDisks::Forget).await.unwrap();
            assert!((1..=CHANGED).all(written), "it has everything");
        } else {
            // Somebody else has no use for half of a disk either: it is moved away, and the VM can go.
            std::fs::rename(&user.path, user.path.with_extension("half")).unwrap();
            storage.write_back(&vm, LostDisks::Forget).await.unwrap();
        }
        assert!(storage.vm_files(&vm).await.unwrap().own.is_empty());
        return;
    }
    panic!("none was killed in the middle");
}

#[tokio::test]
async fn writes_that_no_file_can_take_any_more_are_given_up_by_who_asks_for_it() {
    let home = Home::new();
    let user = user_file(&home);
    let storage = &home.storage;
    let vm = vm_id(1);
    storage.create_vm_files(&vm, 64).await.unwrap();
    let (source, top) = fork(&home, &vm, std::slice::from_ref(&user)).await;
    drop(source);
    write(&top, 1, "lost");
    // Gone for good, folder and all.
    std::fs::remove_dir_all(home.path("disks")).unwrap();
    for lost in [LostDisks::Keep, LostDisks::GiveUpRemoved] {
        let error = storage.write_back(&vm, lost).await.unwrap_err();
        assert!(matches!(error, StorageError::NotWrittenBack { .. }), "{error}");
    }
    storage.write_back(&vm, LostDisks::Forget).await.unwrap();
    assert!(storage.vm_files(&vm).await.unwrap().own.is_empty());
    // What a file can take it gets, also then.
    let user = user_file(&home);
    let (source, top) = fork(&home, &vm, std::slice::from_ref(&user)).await;
    drop(source);
    write(&top, 1, "kept");
    storage.write_back(&vm, LostDisks::Forget).await.unwrap();
    assert_eq!(at(&user.path, CLUSTER as u64, 4), "kept");
}
