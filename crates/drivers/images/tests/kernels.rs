//! Kernels of users.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "tests fail by panicking, and say on standard output what they skip"
)]

mod common;

use std::os::unix::fs::MetadataExt;

use common::Home;
use microvm_ports::storage::KernelSource;
use microvm_ports::{KernelStore, Progress, StorageError};
use microvm_types::kernel::DeviceDiscovery;

/// Names of the drivers that a kernel has built in.
const DRIVERS: &[u8] = b"virtio-mmio\0virtio_blk\0virtio_console\0erofs\0ext4\0overlay\0";

/// The smallest thing that looks like a kernel with a PVH entry.
fn kernel() -> Vec<u8> {
    let mut bytes = vec![0; 0x200];
    bytes[..6].copy_from_slice(b"\x7fELF\x02\x01");
    bytes[0x20] = 0x40;
    bytes[0x36] = 0x38;
    bytes[0x38] = 1;
    bytes[0x40] = 4;
    bytes[0x48..0x4a].copy_from_slice(&0x100u16.to_le_bytes());
    bytes[0x60] = 0x18;
    bytes[0x100] = 4;
    bytes[0x104] = 4;
    bytes[0x108] = 18;
    bytes[0x10c..0x110].copy_from_slice(b"Xen\0");
    bytes[0x180..0x19c].copy_from_slice(b"Linux version 6.1.0-test (x)");
    bytes[0x1a0..0x1a0 + DRIVERS.len()].copy_from_slice(DRIVERS);
    bytes
}

#[tokio::test]
async fn a_kernel_of_the_users_is_stored_verified_and_gets_an_initial_file_system() {
    let home = Home::new();
    let path = home.path("vmlinux");
    std::fs::write(&path, kernel()).unwrap();
    let source = KernelSource::File { path: path.clone(), discovery: DeviceDiscovery::CommandLine };
    assert!(matches!(home.storage.kernel("default").await, Err(StorageError::NoKernel)));
    for name in ["default", "../x", "", ".x"] {
        assert!(home.storage.add_kernel(name, &source, Progress::ignored()).await.is_err(), "{name}");
    }
    let info = home.storage.add_kernel("mine", &source, Progress::ignored()).await.unwrap();
    assert_eq!((info.release.as_str(), info.is_default), ("6.1.0-test", false));
    home.storage.add_kernel("built", &source, Progress::ignored()).await.unwrap();
    let resolved = home.storage.kernel("default").await.unwrap();
    assert_eq!(resolved.info.name, "built");
    assert!(resolved.info.is_default);
    let archive = std::fs::read(&resolved.initramfs).unwrap();
    assert!(
        archive.windows(9).any(|part| part == b"the agent")
            && archive.ends_with(b"TRAILER!!!\0\0\0\0") == archive.ends_with(b"!!!\0\0\0\0")
    );
    // Replaced, damaged, removed.
    home.storage.add_kernel("built", &source, Progress::ignored()).await.unwrap();
    assert_eq!(home.storage.kernels().await.unwrap().found.len(), 2);
    std::fs::remove_file(&resolved.initramfs).ok();
    let again = home.storage.kernel("built").await.unwrap();
    assert!(again.initramfs.exists());
    std::fs::remove_file(&again.path).unwrap();
    let mut damaged = kernel();
    damaged[0x1f0] ^= 1;
    std::fs::write(&again.path, damaged).unwrap();
    assert!(matches!(home.storage.kernel("built").await, Err(StorageError::Damaged { .. })));
    home.storage.remove_kernel("built").await.unwrap();
    assert!(matches!(home.storage.kernel("built").await, Err(StorageError::UnknownKernel(_))));
    std::fs::write(&path, b"not a kernel").unwrap();
    assert!(matches!(
        home.storage.add_kernel("mine", &source, Progress::ignored()).await,
        Err(StorageError::BadInput { .. })
    ));
    home.storage.kernel("mine").await.unwrap();
    assert!(home.work().is_empty());
}

#[tokio::test]
async fn a_kernel_that_needs_modules_is_refused_with_what_it_lacks() {
    let home = Home::new();
    let path = home.path("vmlinux");
    let mut modular = kernel();
    modular[0x1a0..0x1a0 + b"virtio-mmio\0virtio_blk\0".len()].fill(0);
    std::fs::write(&path, modular).unwrap();
    let source = KernelSource::File { path, discovery: DeviceDiscovery::Acpi };
    let error = home.storage.add_kernel("mine", &source, Progress::ignored()).await.unwrap_err();
    assert!(matches!(error, StorageError::BadInput { .. }), "{error}");
    let text = error.to_string();
    assert!(text.contains("CONFIG_VIRTIO_MMIO=y, CONFIG_VIRTIO_BLK=y,"), "{text}");
    assert!(text.contains("`distribution`") && !text.contains("EROFS"), "{text}");
    assert!(home.storage.kernels().await.unwrap().found.is_empty() && home.work().is_empty());
}

#[tokio::test]
async fn images_and_kernels_are_for_the_servers_user_alone() {
    let home = Home::new();
    for directory in ["store/images", "store/images/names", "store/kernels"].map(|name| home.path(name)) {
        assert_eq!(directory.metadata().unwrap().mode() & 0o777, 0o700, "{directory}");
    }
}
