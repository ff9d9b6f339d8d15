//! Disks of VMs, memory files, and disks of users.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "tests fail by panicking, and say on standard output what they skip"
)]

mod common;

use std::os::unix::fs::MetadataExt;
use std::process::Command;

use common::{Home, vm_id};
use microvm_ports::storage::DiskFormat;
use microvm_ports::{StorageError, VmStorage};

#[tokio::test]
async fn a_vm_gets_a_small_sound_scratch_disk_and_loses_it_whole() {
    let home = Home::new();
    let id = vm_id(1);
    let files = home.storage.create_vm_files(&id, 10_240).await.unwrap();
    assert!(matches!(home.storage.create_vm_files(&id, 10_240).await, Err(StorageError::NameTaken(_))));
    assert_eq!(files.scratch.format, DiskFormat::Qcow2);
    assert!(home.storage.vm_disk_usage(&id).await.unwrap() < 100 << 10);
    let base = &files.scratch.backing[0];
    assert_eq!(base.metadata().unwrap().len(), 10 << 30);
    assert!(base.metadata().unwrap().blocks() * 512 < 8 << 20);
    match Command::new("qemu-img").args(["check", files.scratch.path.as_str()]).output() {
        Err(_) => println!("SKIP: qemu-img is not installed (package qemu-utils)"),
        Ok(output) => {
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            let info = Command::new("qemu-img")
                .args(["info", "--output=json", files.scratch.path.as_str()])
                .output()
                .unwrap();
            let info: serde_json::Value = serde_json::from_slice(&info.stdout).unwrap();
            assert_eq!(info["virtual-size"], 10u64 << 30);
            assert_eq!(info["backing-filename"], base.as_str());
            assert_eq!(info["backing-filename-format"], "raw");
        }
    }
    let check = Command::new("/sbin/e2fsck").args(["-fn", base.as_str()]).output().unwrap();
    assert!(check.status.success(), "{}", String::from_utf8_lossy(&check.stdout));
    let again = home.storage.vm_files(&id).await.unwrap();
    assert_eq!(again.scratch.path, files.scratch.path);
    assert_eq!(home.storage.vm_directories().await.unwrap(), std::slice::from_ref(&id));
    // An overlay that names another file is not what a user may bring.
    assert!(matches!(
        home.storage.inspect_disk(&files.scratch.path, None).await,
        Err(StorageError::BadInput { .. })
    ));
    home.storage.remove_vm_files(&id).await.unwrap();
    home.storage.remove_vm_files(&id).await.unwrap();
    assert!(home.storage.vm_directories().await.unwrap().is_empty());
    assert!(home.work().is_empty());
    for size in [0, 1, u32::MAX] {
        assert!(matches!(home.storage.create_vm_files(&id, size).await, Err(StorageError::BadInput { .. })));
    }
}

#[tokio::test]
async fn a_disk_whose_manifest_is_lost_is_kept() {
    let home = Home::new();
    let storage = &home.storage;
    let vm = vm_id(1);
    assert!(storage.is_unfinished(&vm).await.unwrap(), "nothing is there");
    let files = storage.create_vm_files(&vm, 64).await.unwrap();
    assert!(storage.is_unfinished(&vm).await.unwrap());
    storage.finish_vm_files(&vm).await.unwrap();
    assert!(!storage.is_unfinished(&vm).await.unwrap());
    std::fs::remove_file(files.directory.join("disk.json")).unwrap();
    assert!(!storage.is_unfinished(&vm).await.unwrap(), "a disk would be removed");
    std::fs::remove_file(&files.scratch.path).unwrap();
    assert!(storage.is_unfinished(&vm).await.unwrap(), "without a disk it is garbage");
    // One that was made for a VM to come has no disk yet.
    let reserved = vm_id(2);
    storage.reserve_vm_directory(&reserved).await.unwrap();
    assert!(storage.is_unfinished(&reserved).await.unwrap());
}

#[tokio::test]
async fn a_changed_scratch_base_is_found() {
    let home = Home::new();
    let files = home.storage.create_vm_files(&vm_id(1), 64).await.unwrap();
    let base = &files.scratch.backing[0];
    std::fs::set_permissions(base, std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
    let file = std::fs::OpenOptions::new().write(true).open(base).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, b"x", 5000).unwrap();
    assert!(matches!(home.storage.create_vm_files(&vm_id(2), 64).await, Err(StorageError::Damaged { .. })));
}

#[tokio::test]
async fn memory_files_are_all_zero_or_made_anew() {
    let home = Home::new();
    let path = home.storage.zero_memory(512).await.unwrap();
    let metadata = path.metadata().unwrap();
    assert_eq!((metadata.len(), metadata.blocks()), (512 << 20, 0));
    assert_eq!(home.storage.zero_memory(512).await.unwrap(), path);
    std::fs::OpenOptions::new()
        .write(true)
        .open(&path)
        .and_then(|file| std::os::unix::fs::FileExt::write_all_at(&file, b"x", 99))
        .unwrap();
    home.storage.zero_memory(512).await.unwrap();
    assert_eq!(path.metadata().unwrap().blocks(), 0);
    assert!(home.storage.zero_memory(0).await.is_err());
}

#[tokio::test]
async fn disks_of_the_users_are_examined() {
    let home = Home::new();
    let raw = home.path("raw");
    std::fs::write(&raw, [0; 1024]).unwrap();
    assert_eq!(home.storage.inspect_disk(&raw, None).await.unwrap(), DiskFormat::Raw);
    // Known to be raw: what a guest writes there changes nothing, and an impossible header is no reason to refuse it.
    std::fs::write(&raw, [b"QFI\xfb".as_slice(), &[0xff; 1020]].concat()).unwrap();
    assert_eq!(home.storage.inspect_disk(&raw, Some(DiskFormat::Raw)).await.unwrap(), DiskFormat::Raw);
    assert!(home.storage.inspect_disk(&raw, None).await.is_err());
    home.storage.real_disk_path(&raw).await.unwrap();
    // The server's own files, also by a link to them.
    let id = microvm_types::VmId::from_parts(1, 1);
    let inside = home.storage.vm_directory(&id);
    std::fs::create_dir_all(&inside).unwrap();
    std::fs::write(inside.join("disk.raw"), [0; 1024]).unwrap();
    std::os::unix::fs::symlink(inside.join("disk.raw"), home.path("sly")).unwrap();
    for path in [inside.join("disk.raw"), home.path("sly")] {
        let refused = home.storage.real_disk_path(&path).await.unwrap_err().to_string();
        assert!(refused.contains("server's own files"), "{refused}");
    }
    std::fs::write(&raw, [0; 1024]).unwrap();
    assert!(home.storage.inspect_disk(&raw, Some(DiskFormat::Qcow2)).await.is_err());
    std::fs::write(&raw, [0; 1000]).unwrap();
    for path in [raw, home.path("missing"), home.path("."), "relative".into()] {
        assert!(
            matches!(home.storage.inspect_disk(&path, None).await, Err(StorageError::BadInput { .. })),
            "{path}"
        );
    }
    let disk = home.path("disk.qcow2");
    match Command::new("qemu-img").args(["create", "-q", "-f", "qcow2", disk.as_str(), "1G"]).status() {
        Err(_) => println!("SKIP: qemu-img is not installed (package qemu-utils)"),
        Ok(_) => {
            assert_eq!(home.storage.inspect_disk(&disk, None).await.unwrap(), DiskFormat::Qcow2);
            let over = home.path("over.qcow2");
            Command::new("qemu-img")
                .args(["create", "-q", "-f", "qcow2", "-b", "/etc/passwd", "-F", "raw", over.as_str(), "1G"])
                .status()
                .unwrap();
            assert!(matches!(
                home.storage.inspect_disk(&over, None).await,
                Err(StorageError::BadInput { .. })
            ));
        }
    }
}

#[tokio::test]
async fn a_vm_is_removed_where_nothing_new_can_be_written() {
    let home = Home::new();
    let id = vm_id(2);
    let files = home.storage.create_vm_files(&id, 64).await.unwrap();
    std::fs::write(files.directory.join("console.log"), "x").unwrap();
    // Whoever still holds the disk open must not keep its space.
    let held = std::fs::OpenOptions::new().write(true).open(&files.scratch.path).unwrap();
    // No work in progress can be begun, as on a full disk.
    std::fs::remove_dir_all(home.path("store/tmp")).unwrap();
    std::fs::write(home.path("store/tmp"), "").unwrap();
    home.storage.remove_vm_files(&id).await.unwrap();
    assert!(!files.directory.exists());
    assert_eq!(held.metadata().unwrap().len(), 0);
    home.storage.remove_vm_files(&id).await.unwrap();
}

#[tokio::test]
async fn what_belongs_to_a_vm_is_for_the_servers_user_alone() {
    let home = Home::new();
    let files = home.storage.create_vm_files(&vm_id(3), 64).await.unwrap();
    let shared = ["store/layers", "store/snapshots", "store/scratch-base"].map(|name| home.path(name));
    for directory in [home.path("store/vms"), files.directory].into_iter().chain(shared) {
        assert_eq!(directory.metadata().unwrap().mode() & 0o777, 0o700, "{directory}");
    }
}
