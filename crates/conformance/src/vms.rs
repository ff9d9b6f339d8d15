//! The suite of [`VmStorage`]: files of VMs.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use camino::Utf8PathBuf;
use microvm_ports::storage::{DiskFormat, VmStorage};
use microvm_types::VmId;

use crate::{Must, Suite};

/// Gives the suite its store.
#[async_trait]
pub trait VmHarness: Send + Sync {
    /// Files of VMs, none yet.
    async fn vms(&self) -> Arc<dyn VmStorage>;

    /// An empty folder on the host, for disks of users.
    async fn folder(&self) -> Utf8PathBuf;

    /// Longest time one check may take.
    fn limit(&self) -> Duration {
        Duration::from_secs(60)
    }
}

/// Runs every check over the files of VMs of `harness`.
///
/// # Panics
/// If a check fails.
pub async fn run(harness: &dyn VmHarness) {
    let mut suite = Suite::new("vms", harness.limit());
    suite.check("files of a VM are made, found, counted and removed", vm_files(harness)).await;
    suite.check("files of a VM are not made twice", vm_twice(harness)).await;
    suite.check("files of two VMs are apart", vm_apart(harness)).await;
    suite.check("zero memory has its size, is zero and is made once", zero_memory(harness)).await;
    suite.check("a disk is examined before it is used", disks(harness)).await;
    suite.finish();
}

fn id(number: u64) -> VmId {
    VmId::from_parts(1_700_000_000_000, number)
}

async fn vm_files(harness: &dyn VmHarness) {
    let storage = harness.vms().await;
    let id = id(1);
    storage.remove_vm_files(&id).await.must("removing what is not there");
    storage.vm_files(&id).await.must_fail("finding what is not there");
    let made = storage.create_vm_files(&id, 64).await.must("making files");
    assert_eq!(made.directory, storage.vm_directory(&id));
    assert!(made.directory.is_dir(), "{} is not a directory", made.directory);
    assert!(made.scratch.path.is_file(), "{} is not a file", made.scratch.path);
    assert!(!made.scratch.read_only, "the scratch disk is read-only");
    assert!(made.scratch.serial.len() <= 20, "the serial is too long");
    let found = storage.vm_files(&id).await.must("finding the files");
    assert_eq!((&found.directory, &found.scratch.path), (&made.directory, &made.scratch.path));
    assert_eq!(storage.vm_directories().await.must("listing"), std::slice::from_ref(&id));
    let usage = storage.vm_disk_usage(&id).await.must("asking for the usage");
    assert!(usage < 16 << 20, "an unused 64 MiB disk takes {usage} bytes");
    storage.remove_vm_files(&id).await.must("removing");
    assert!(!made.directory.exists(), "{} is still there", made.directory);
    assert_eq!(storage.vm_directories().await.must("listing"), []);
    storage.remove_vm_files(&id).await.must("removing again");
}

async fn vm_twice(harness: &dyn VmHarness) {
    let storage = harness.vms().await;
    let id = id(2);
    let made = storage.create_vm_files(&id, 64).await.must("making files");
    storage.create_vm_files(&id, 64).await.must_fail("making them again");
    assert!(made.scratch.path.is_file(), "the refused second call removed the disk");
    storage.remove_vm_files(&id).await.must("removing");
}

async fn vm_apart(harness: &dyn VmHarness) {
    let storage = harness.vms().await;
    let (first, second) = (id(3), id(4));
    storage.create_vm_files(&first, 64).await.must("making files");
    storage.create_vm_files(&second, 64).await.must("making files of another");
    storage.remove_vm_files(&first).await.must("removing one");
    storage.vm_files(&second).await.must("finding the other");
    assert_eq!(storage.vm_directories().await.must("listing"), std::slice::from_ref(&second));
    storage.remove_vm_files(&second).await.must("removing");
}

async fn zero_memory(harness: &dyn VmHarness) {
    let storage = harness.vms().await;
    let path = storage.zero_memory(3).await.must("making zero memory");
    let data = std::fs::read(&path).must("reading it");
    assert_eq!(data.len(), 3 << 20);
    assert!(data.iter().all(|byte| *byte == 0), "it is not all zero");
    assert_eq!(storage.zero_memory(3).await.must("asking again"), path);
    assert_ne!(storage.zero_memory(4).await.must("asking for another size"), path);
}

async fn disks(harness: &dyn VmHarness) {
    let storage = harness.vms().await;
    let folder = harness.folder().await;
    let raw = folder.join("disk.raw");
    std::fs::write(&raw, vec![0; 4096]).must("writing a disk");
    assert_eq!(storage.inspect_disk(&raw, None).await.must("examining a raw disk"), DiskFormat::Raw);
    storage.inspect_disk(&folder.join("absent"), None).await.must_fail("examining a disk that is not there");
}
