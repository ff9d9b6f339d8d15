//! All suites on the fakes.
#![allow(clippy::unwrap_used)] // The lint's exception for tests does not reach helpers of integration tests.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use camino::Utf8PathBuf;
use microvm_conformance::guest::{self, GuestHarness};
use microvm_conformance::hypervisor::{self, HypervisorHarness};
use microvm_conformance::images::{self, ImageHarness};
use microvm_conformance::snapshots::{self, SnapshotHarness, SnapshotPart, SnapshotStorage};
use microvm_conformance::state_store::{self, StateStoreHarness};
use microvm_conformance::vms::{self, VmHarness};
use microvm_driver_fake::{Character, FakeHypervisor, FakeStorage, MemoryStore};
use microvm_ports::guest::{Guest, GuestConnector, Identity};
use microvm_ports::hypervisor::{
    Device, Hypervisor, KernelBoot, MachineDisk, MachineExit, MachineSpec, MachineStart,
};
use microvm_ports::{ImageStore, KernelStore, SnapshotStore, StateStore, VmStorage};
use microvm_types::{SnapshotId, VmId};

struct Stores;

#[async_trait]
impl StateStoreHarness for Stores {
    async fn empty(&self) -> Arc<dyn StateStore> {
        Arc::new(MemoryStore::default())
    }

    async fn reopened(&self) -> Option<Arc<dyn StateStore>> {
        None
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn conformance_state_store_in_memory() {
    state_store::run(&Stores).await;
}

struct Machines {
    hypervisor: FakeHypervisor,
    storage: FakeStorage,
}

impl Machines {
    fn new() -> Self {
        Self::of(Character::default())
    }

    fn of(character: Character) -> Self {
        Self { hypervisor: FakeHypervisor::of(character), storage: FakeStorage::furnished().unwrap() }
    }
}

#[async_trait]
impl HypervisorHarness for Machines {
    fn hypervisor(&self) -> Arc<dyn Hypervisor> {
        Arc::new(self.hypervisor.clone())
    }

    fn restarted(&self) -> Arc<dyn Hypervisor> {
        Arc::new(self.hypervisor.clone())
    }

    fn connector(&self) -> Arc<dyn GuestConnector> {
        Arc::new(self.hypervisor.connector())
    }

    async fn spec(&self, id: &VmId) -> MachineSpec {
        let files = self.storage.create_vm_files(id, 64).await.unwrap();
        let kernel = self.storage.kernel("default").await.unwrap();
        MachineSpec {
            id: id.clone(),
            name: id.into(),
            vcpus: 1,
            memory_mib: 64,
            cpu_percent: None,
            start: MachineStart::Boot(KernelBoot {
                kernel: kernel.path,
                initramfs: kernel.initramfs,
                discovery: kernel.info.discovery,
                arguments: Vec::new(),
                zero_memory: Some(self.storage.zero_memory(64).await.unwrap()),
            }),
            devices: vec![Device::Disk(files.scratch)],
            directory: files.directory,
        }
    }

    fn snapshots(&self) -> Arc<dyn SnapshotStore> {
        Arc::new(self.storage.clone())
    }

    fn storage(&self) -> Arc<dyn VmStorage> {
        Arc::new(self.storage.clone())
    }

    fn disk_mib(&self) -> u32 {
        64
    }

    async fn processes(&self, spec: &MachineSpec) -> usize {
        usize::from(self.hypervisor.machines().contains_key(&spec.id))
    }

    async fn kill_vmm(&self, spec: &MachineSpec) {
        assert!(self.hypervisor.end(&spec.id, MachineExit::Vmm("signal 9".to_owned())));
    }

    fn boot_limit(&self) -> Duration {
        Duration::from_secs(5)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn conformance_hypervisor_fake() {
    hypervisor::run(&Machines::new()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn conformance_hypervisor_fake_paused_with_whole_files() {
    hypervisor::run(&Machines::of(Character::PausedFile)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn conformance_hypervisor_fake_saves_over_the_save_before() {
    hypervisor::run(&Machines::of(Character::PausedSparse)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn conformance_hypervisor_fake_that_ends_with_its_save() {
    hypervisor::run(&Machines::of(Character::Stops)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn conformance_hypervisor_fake_without_branches() {
    let machines = Machines::new();
    machines.hypervisor.forget_branching();
    hypervisor::run(&machines).await;
}

struct Guests {
    machines: Machines,
    launched: AtomicU64,
}

impl Guests {
    async fn boot(&self) -> Arc<dyn Guest> {
        let number = self.launched.fetch_add(1, Ordering::Relaxed);
        let spec = self.machines.spec(&VmId::from_parts(number, number)).await;
        let machine = self.machines.hypervisor.launch(&spec).await.unwrap();
        machine.resume().await.unwrap();
        let identity = Identity {
            host_name: "conformance".to_owned(),
            environment: vec![("FROM_IDENTITY".to_owned(), "yes".to_owned())],
            ..Identity::default()
        };
        let connector = self.machines.hypervisor.connector();
        connector.connect(&machine.endpoint(), 1, &identity, Duration::from_secs(5)).await.unwrap()
    }
}

#[async_trait]
impl GuestHarness for Guests {
    async fn guest(&self) -> Arc<dyn Guest> {
        self.boot().await
    }

    async fn guest_to_close(&self) -> Arc<dyn Guest> {
        self.boot().await
    }

    fn limit(&self) -> Duration {
        Duration::from_secs(10)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn conformance_guest_fake() {
    guest::run(&Guests { machines: Machines::new(), launched: AtomicU64::new(1) }).await;
}

struct Folders {
    directory: tempfile::TempDir,
    made: AtomicU32,
}

#[async_trait]
impl ImageHarness for Folders {
    async fn images(&self) -> Arc<dyn ImageStore> {
        Arc::new(FakeStorage::empty().unwrap())
    }

    async fn folder(&self, variant: u32) -> Utf8PathBuf {
        self.made.fetch_add(1, Ordering::Relaxed);
        let path = Utf8PathBuf::from_path_buf(self.directory.path().join(variant.to_string())).unwrap();
        std::fs::create_dir_all(&path).unwrap();
        std::fs::write(path.join("file"), variant.to_string()).unwrap();
        path
    }
}

#[async_trait]
impl VmHarness for Folders {
    async fn vms(&self) -> Arc<dyn VmStorage> {
        Arc::new(FakeStorage::empty().unwrap())
    }

    async fn folder(&self) -> Utf8PathBuf {
        ImageHarness::folder(self, 7).await
    }
}

#[tokio::test]
async fn conformance_storage_fake() {
    let folders = Folders { directory: tempfile::tempdir().unwrap(), made: AtomicU32::new(0) };
    images::run(&folders).await;
    vms::run(&folders).await;
}

/// Stores with the port objects they were given out as.
#[derive(Default)]
struct Saved(std::sync::Mutex<Vec<Given>>);

type Given = (Arc<dyn VmStorage>, FakeStorage, Vec<tempfile::TempDir>);

impl Saved {
    fn of(&self, storage: &SnapshotStorage) -> FakeStorage {
        let all = self.0.lock().unwrap();
        all.iter().find(|(vms, ..)| Arc::ptr_eq(vms, &storage.vms)).unwrap().1.clone()
    }

    fn give(&self, fake: FakeStorage) -> SnapshotStorage {
        let vms: Arc<dyn VmStorage> = Arc::new(fake.clone());
        self.0.lock().unwrap().push((Arc::clone(&vms), fake.clone(), Vec::new()));
        SnapshotStorage { vms, snapshots: Arc::new(fake) }
    }
}

fn usage(path: &std::path::Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let Ok(metadata) = path.symlink_metadata() else { return 0 };
    let below = std::fs::read_dir(path).into_iter().flatten().map(|entry| usage(&entry.unwrap().path()));
    metadata.blocks() * 512 + below.sum::<u64>()
}

/// First content of an overlay or layer.
const NOTHING_WRITTEN: &str = "a made-up disk";

#[async_trait]
impl SnapshotHarness for Saved {
    async fn empty(&self) -> SnapshotStorage {
        self.give(FakeStorage::empty().unwrap())
    }

    async fn reopened(&self, storage: &SnapshotStorage) -> Option<SnapshotStorage> {
        Some(self.give(self.of(storage)))
    }

    async fn write_disk(&self, disk: &MachineDisk, text: &str) -> bool {
        std::fs::write(&disk.path, text).unwrap();
        true
    }

    async fn read_disk(&self, disk: &MachineDisk) -> String {
        let chain = std::iter::once(&disk.path).chain(&disk.backing);
        let mut texts = chain.map(|path| std::fs::read_to_string(path).unwrap());
        texts.find(|text| text != NOTHING_WRITTEN).unwrap_or_default()
    }

    async fn damage(&self, storage: &SnapshotStorage, id: &SnapshotId, part: SnapshotPart) {
        let part = match part {
            SnapshotPart::DeviceState => "device-state",
            SnapshotPart::Configuration => "state/configuration",
            SnapshotPart::Memory => "memory",
            SnapshotPart::Disk => "disk/0",
        };
        self.of(storage).damage_snapshot(id, part);
    }

    async fn usage(&self, storage: &SnapshotStorage) -> u64 {
        let vms = storage.vms.vm_directory(&VmId::from_parts(1, 1));
        usage(vms.parent().unwrap().parent().unwrap().as_std_path())
    }

    async fn directory(&self) -> Utf8PathBuf {
        let directory = tempfile::tempdir().unwrap();
        let path = Utf8PathBuf::from_path_buf(directory.path().to_owned()).unwrap();
        let fake = FakeStorage::empty().unwrap();
        self.0.lock().unwrap().push((Arc::new(fake.clone()), fake, vec![directory]));
        path
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn conformance_snapshots_fake() {
    snapshots::run(&Saved::default()).await;
}
