//! The port's own suite on this driver.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "tests fail by panicking, and say on standard output what they skip"
)]

mod common;

use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use camino::Utf8PathBuf;
use common::Home;
use microvm_conformance::snapshots::{self, SnapshotHarness, SnapshotPart, SnapshotStorage};
use microvm_conformance::vms::{self, VmHarness};
use microvm_driver_disks::Disks;
use microvm_ports::VmStorage;
use microvm_ports::hypervisor::MachineDisk;
use microvm_types::SnapshotId;

/// Every question gets a store of its own.
#[derive(Default)]
struct Harness(Mutex<Vec<Home>>);

#[async_trait]
impl VmHarness for Harness {
    async fn vms(&self) -> Arc<dyn VmStorage> {
        let home = Home::new();
        let vms = Arc::new(home.storage.clone());
        self.0.lock().unwrap().push(home);
        vms
    }

    async fn folder(&self) -> Utf8PathBuf {
        let home = Home::new();
        let folder = home.path("folder");
        std::fs::create_dir(&folder).unwrap();
        self.0.lock().unwrap().push(home);
        folder
    }
}

#[tokio::test]
async fn the_driver_keeps_the_promises_of_its_ports() {
    vms::run(&Harness::default()).await;
}

/// Place of the suite's texts on a disk, in bytes.
const TEXT_AT: u64 = 40 << 20;

/// The chain of a disk as QEMU's tools are told, never followed from headers.
fn chain(disk: &MachineDisk) -> String {
    let (base, layers) = disk.backing.split_last().unwrap();
    let mut node = serde_json::json!({ "driver": "raw", "read-only": true, "file": { "driver": "file", "filename": base } });
    for path in layers.iter().rev().chain([&disk.path]) {
        node = serde_json::json!({ "driver": "qcow2", "file": { "driver": "file", "filename": path }, "backing": node });
    }
    format!("json:{node}")
}

/// Runs one command of `qemu-io`; `None` without it.
fn qemu_io(disk: &MachineDisk, read_only: bool, command: &str) -> Option<Vec<u8>> {
    let mut program = std::process::Command::new("qemu-io");
    if read_only {
        program.arg("-r");
    }
    match program.args(["-c", command]).arg(chain(disk)).output() {
        Err(_) => {
            println!("SKIP: qemu-io is not installed (package qemu-utils), disks are not looked into");
            None
        }
        Ok(output) => {
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            let errors = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success() && !text.contains("failed"), "{command}: {text}{errors}");
            Some(output.stdout)
        }
    }
}

struct Snapshots {
    homes: Mutex<Vec<(Home, Arc<dyn VmStorage>)>>,
}

impl Snapshots {
    fn root(&self, storage: &SnapshotStorage) -> Utf8PathBuf {
        let homes = self.homes.lock().unwrap();
        let found = homes.iter().find(|(_, vms)| Arc::ptr_eq(vms, &storage.vms));
        found.unwrap().0.path("store")
    }

    fn both(storage: Disks) -> SnapshotStorage {
        SnapshotStorage { vms: Arc::new(storage.clone()), snapshots: Arc::new(storage) }
    }
}

fn usage(path: &std::path::Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let Ok(metadata) = path.symlink_metadata() else { return 0 };
    let below = std::fs::read_dir(path).into_iter().flatten().map(|entry| usage(&entry.unwrap().path()));
    metadata.blocks() * 512 + below.sum::<u64>()
}

#[async_trait]
impl SnapshotHarness for Snapshots {
    async fn empty(&self) -> SnapshotStorage {
        let home = Home::new();
        let storage = Self::both(home.storage.clone());
        self.homes.lock().unwrap().push((home, Arc::clone(&storage.vms)));
        storage
    }

    async fn reopened(&self, storage: &SnapshotStorage) -> Option<SnapshotStorage> {
        Some(Self::both(common::open(self.root(storage)).unwrap()))
    }

    async fn write_disk(&self, disk: &MachineDisk, text: &str) -> bool {
        // One byte pattern for each text: the tool writes no others.
        let commands: Vec<u8> = text.bytes().chain([0]).collect();
        for (index, byte) in commands.into_iter().enumerate() {
            let at = TEXT_AT + index as u64 * 512;
            if qemu_io(disk, false, &format!("write -P {byte} {at} 512")).is_none() {
                return false;
            }
        }
        true
    }

    async fn read_disk(&self, disk: &MachineDisk) -> String {
        let length = 40 * 512;
        let Some(dump) = qemu_io(disk, true, &format!("read -v {TEXT_AT} {length}")) else {
            return String::new();
        };
        let dump = String::from_utf8(dump).unwrap();
        // Lines of the dump: address in hexadecimal, sixteen bytes, text.
        let bytes = dump.lines().filter_map(|line| {
            let (at, rest) = line.split_once(':')?;
            let at = u64::from_str_radix(at.trim(), 16).ok()? - TEXT_AT;
            let first = rest.split_whitespace().next()?;
            at.is_multiple_of(512).then(|| u8::from_str_radix(first, 16).unwrap())
        });
        String::from_utf8(bytes.take_while(|byte| *byte != 0).collect()).unwrap()
    }

    async fn damage(&self, storage: &SnapshotStorage, id: &SnapshotId, part: SnapshotPart) {
        use std::os::unix::fs::{FileExt, PermissionsExt};
        let root = self.root(storage);
        let snapshot = root.join("snapshots").join(id.as_str());
        let path = match part {
            SnapshotPart::DeviceState => snapshot.join("device.state"),
            SnapshotPart::Configuration => snapshot.join("state.configuration"),
            SnapshotPart::Memory => snapshot.join("memory.pages"),
            SnapshotPart::Disk => {
                let manifest = std::fs::read_to_string(snapshot.join("manifest.json")).unwrap();
                let manifest: serde_json::Value = serde_json::from_str(&manifest).unwrap();
                let Some(layer) = manifest["body"]["disk"]["layers"][0]["id"].as_str() else { return };
                root.join("layers").join(format!("{layer}.qcow2"))
            }
        };
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        let file = std::fs::OpenOptions::new().read(true).write(true).open(&path).unwrap();
        let at = file.metadata().unwrap().len() / 2;
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[byte[0] ^ 16], at).unwrap();
    }

    async fn usage(&self, storage: &SnapshotStorage) -> u64 {
        usage(self.root(storage).as_std_path())
    }

    async fn directory(&self) -> Utf8PathBuf {
        let home = Home::new();
        let path = home.path("directory");
        std::fs::create_dir(&path).unwrap();
        let vms: Arc<dyn VmStorage> = Arc::new(home.storage.clone());
        self.homes.lock().unwrap().push((home, vms));
        path
    }

    fn limit(&self) -> std::time::Duration {
        std::time::Duration::from_secs(120)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_driver_keeps_snapshots_as_promised() {
    snapshots::run(&Snapshots { homes: Mutex::default() }).await;
}
