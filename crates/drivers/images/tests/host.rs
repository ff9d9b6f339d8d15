//! Tests that need tools of the host and its package sources: skipped, with a printed reason, where they are missing.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "tests fail by panicking, and say on standard output what they skip"
)]

mod common;

use std::process::Command;
use std::sync::{Arc, Mutex};

use common::{Home, extract};
use microvm_conformance::fixtures::{SmallDisk, have, is_root};
use microvm_driver_images::ArchiveLimits;
use microvm_ports::storage::{ImageConfig, ImageSource, KernelSource};
use microvm_ports::{ImageStore, KernelStore, Progress, StorageError};

#[tokio::test]
async fn the_distribution_kernel_comes_with_its_modules() {
    if !have(&["apt-get", "apt-cache", "dpkg-deb"]) {
        return;
    }
    let home = Home::new();
    let info =
        match home.storage.add_kernel("distribution", &KernelSource::Distribution, Progress::ignored()).await
        {
            // Package lists that were never fetched are a matter of the host, not of this program.
            Err(StorageError::BadInput { detail, .. } | StorageError::ToolFailed { detail, .. })
                if detail.contains("apt-get update") =>
            {
                println!("SKIP: {detail}");
                return;
            }
            other => other.unwrap(),
        };
    assert!(info.is_default && info.release.contains("cloud"), "{info:?}");
    let resolved = home.storage.kernel("default").await.unwrap();
    assert_eq!(resolved.path.file_name(), Some("vmlinux"));
    let listing =
        Command::new("sh").args(["-c", &format!("cpio -t < {}", resolved.initramfs)]).output().unwrap();
    if listing.status.success() {
        let names = String::from_utf8(listing.stdout).unwrap();
        for name in [
            "init",
            "dev/console",
            "modules/order",
            "modules/virtio_blk.ko",
            "modules/erofs.ko",
            "modules/overlay.ko",
        ] {
            assert!(names.lines().any(|line| line == name), "{name} is missing in {names}");
        }
    }
    let order = std::fs::read_to_string(resolved.path.with_file_name("modules").join("order")).unwrap();
    let place = |module: &str| {
        order.lines().position(|line| line == module).unwrap_or_else(|| panic!("{module} in {order}"))
    };
    assert!(place("virtio.ko").max(place("virtio_ring.ko")) < place("virtio_mmio.ko"), "{order}");
    assert!(place("libcrc32c.ko") < place("erofs.ko"), "{order}");
    assert!(home.storage.verify_all(Progress::ignored()).await.unwrap().is_empty());
    assert!(home.work().is_empty());
}

#[tokio::test]
async fn a_debian_image_is_built_from_the_hosts_own_sources() {
    if !have(&["mmdebstrap"]) {
        return;
    }
    let home = Home::new();
    let source = ImageSource::Debian { suite: "bookworm".into(), packages: Vec::new(), users: Vec::new() };
    let steps = Arc::new(Mutex::new(Vec::new()));
    let sink = Arc::clone(&steps);
    let progress = Progress::to(move |report| sink.lock().unwrap().push(report.step));
    let started = std::time::Instant::now();
    let info = match home.storage.add_image("debian", &source, &[], &ImageConfig::default(), progress).await {
        Err(StorageError::BadInput { detail, .. }) if detail.contains("package sources") => {
            println!("SKIP: {detail}");
            return;
        }
        other => other.unwrap(),
    };
    println!("{} MiB in {:?}", info.size >> 20, started.elapsed());
    assert!(steps.lock().unwrap().iter().any(|step| step.starts_with("mmdebstrap: ")));
    let resolved = home.storage.image("debian").await.unwrap();
    let Some(tree) = extract(&resolved.path) else { return };
    let release = std::fs::read_to_string(tree.path().join("root/usr/lib/os-release")).unwrap();
    assert!(release.contains("bookworm"));
    assert!(home.work().is_empty());
    let wrong = ImageSource::Debian {
        suite: "bookworm".into(),
        packages: vec!["no-such-package-anywhere".into()],
        users: Vec::new(),
    };
    let error = home
        .storage
        .add_image("x", &wrong, &[], &ImageConfig::default(), Progress::ignored())
        .await
        .unwrap_err();
    assert!(
        matches!(&error, StorageError::ToolFailed { detail, .. } if detail.contains("no-such-package-anywhere")),
        "{error:?}"
    );
    for word in ["a,b", "--hook", "a b"] {
        let wrong =
            ImageSource::Debian { suite: "bookworm".into(), packages: vec![word.into()], users: Vec::new() };
        let error = home
            .storage
            .add_image("x", &wrong, &[], &ImageConfig::default(), Progress::ignored())
            .await
            .unwrap_err();
        assert!(matches!(error, StorageError::BadInput { .. }), "{word}");
    }
}

#[tokio::test]
async fn a_full_disk_is_told_and_leaves_nothing() {
    if !is_root() {
        return;
    }
    let disk = SmallDisk::mount("8m");
    let root = camino::Utf8Path::from_path(disk.path()).unwrap().join("store");
    let storage = common::open(root.clone(), ArchiveLimits::default()).unwrap();
    let elsewhere = tempfile::tempdir().unwrap();
    let folder = camino::Utf8Path::from_path(elsewhere.path()).unwrap().join("folder");
    std::fs::create_dir(&folder).unwrap();
    // 12 MiB do not fit at all; 5 MiB fit once, but not twice.
    for mib in [12, 5] {
        std::fs::write(folder.join("large"), vec![1; mib << 20]).unwrap();
        let source = ImageSource::Path { path: folder.clone() };
        let result = storage.add_image("x", &source, &[], &ImageConfig::default(), Progress::ignored()).await;
        assert!(matches!(result, Err(StorageError::DiskFull { .. })), "{result:?}");
        assert!(storage.images().await.unwrap().found.is_empty());
        assert_eq!(std::fs::read_dir(root.join("tmp")).unwrap().count(), 1, "only the gate");
    }
}

/// Processes whose root or working directory is below a path.
fn processes_below(path: &camino::Utf8Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap() {
        let entry = entry.unwrap().path();
        let below =
            |link: &str| std::fs::read_link(entry.join(link)).is_ok_and(|target| target.starts_with(path));
        if below("root") || below("cwd") {
            found.push(entry.display().to_string());
        }
    }
    found
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_interrupted_debian_build_leaves_no_process_mount_or_file() {
    if !have(&["mmdebstrap"]) || !is_root() {
        return;
    }
    let home = Home::new();
    let (sender, mut steps) = tokio::sync::mpsc::unbounded_channel();
    let progress = Progress::to(move |report| {
        let _ = sender.send(report.step);
    });
    let storage = home.storage.clone();
    let adding = tokio::spawn(async move {
        let source =
            ImageSource::Debian { suite: "bookworm".into(), packages: Vec::new(), users: Vec::new() };
        storage.add_image("x", &source, &[], &ImageConfig::default(), progress).await
    });
    // At this step its chroot is full of mounts and running programs.
    while let Some(step) = steps.recv().await {
        if step.starts_with("mmdebstrap: installing essential") {
            break;
        }
    }
    if adding.is_finished() {
        println!("SKIP: {:?}", adding.await.unwrap().map(|_| ()));
        return;
    }
    adding.abort();
    assert!(adding.await.unwrap_err().is_cancelled());
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while !home.work().is_empty() || !processes_below(&home.path("store")).is_empty() {
        assert!(
            std::time::Instant::now() < deadline,
            "{:?} {:?}",
            home.work(),
            processes_below(&home.path("store"))
        );
        tokio::task::yield_now().await;
    }
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
    assert!(!mounts.contains(home.path("store").as_str()), "{mounts}");
    assert!(home.storage.images().await.unwrap().found.is_empty());
    assert!(std::path::Path::new("/dev/null").exists() && std::path::Path::new("/proc/self").exists());
}
