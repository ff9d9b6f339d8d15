//! A root of its own with everything a machine needs.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use camino::{Utf8Path, Utf8PathBuf};
use futures::StreamExt as _;
use microvm_driver_disks::{Disks, DisksConfig};
use microvm_driver_host::SystemClock;
use microvm_driver_images::{AgentSource, Images, ImagesConfig};
use microvm_driver_qemu::{Qemu, QemuConfig};
use microvm_ports::branch::{BranchRequest, DiskChange, InputProbe, PauseSteps};
use microvm_ports::guest::{Guest, ProcessEvent};
use microvm_ports::hypervisor::{Device, KernelBoot, MachineDisk, MachineSpec, MachineStart};
use microvm_ports::{ImageStore as _, KernelStore as _, StorageError, VmStorage as _};
use microvm_types::VmId;
use microvm_types::exec::ExecRequest;

/// Longest time for one step.
#[allow(dead_code, reason = "not every test program waits for one")]
pub(crate) const LIMIT: Duration = Duration::from_secs(60);

/// Runs a script in a guest; gives what it wrote to both outputs, without the last line end.
#[allow(dead_code, reason = "not every test program runs scripts")]
pub(crate) async fn run(guest: &dyn Guest, script: &str) -> String {
    let command = ["sh", "-c", script].map(str::to_owned).to_vec();
    let mut handle = guest.exec(&ExecRequest { command, ..ExecRequest::default() }).await.unwrap();
    let mut text = Vec::new();
    while let Some(event) = tokio::time::timeout(LIMIT, handle.events.next()).await.unwrap() {
        if let ProcessEvent::Stdout(data) | ProcessEvent::Stderr(data) = event {
            text.extend_from_slice(&data);
        }
    }
    String::from_utf8(text).unwrap().trim().to_owned()
}

/// Size of scratch disks.
pub(crate) const DISK_MIB: u32 = 1024;

/// Driver and files that the tests launch machines with.
pub(crate) struct Bench {
    pub(crate) driver: Arc<Qemu>,
    #[allow(dead_code, reason = "not every test file has a second server")]
    pub(crate) launcher: Utf8PathBuf,
    pub(crate) kernel: &'static str,
    #[allow(dead_code, reason = "not every test file keeps states")]
    pub(crate) storage: Disks,
    images: Images,
    directory: tempfile::TempDir,
}

impl Bench {
    /// `None`, with the reason on standard error, where something is missing.
    pub(crate) async fn open(kernel: &'static str) -> Option<Self> {
        Self::open_with(kernel, true).await
    }

    /// `write_tracking`: as [`QemuConfig`] has it.
    pub(crate) async fn open_with(kernel: &'static str, write_tracking: bool) -> Option<Self> {
        let variable = |name: &str| {
            let path = std::env::var(name).ok().filter(|path| Utf8Path::new(path).exists());
            if path.is_none() {
                eprintln!("SKIPPED: {name} does not name anything");
            }
            path
        };
        let furnished = variable("MICROVM_TEST_ROOT")?;
        if !Utf8Path::new(&furnished).join("kernels").join(kernel).exists() {
            eprintln!("SKIPPED: the root has no kernel `{kernel}`");
            return None;
        }
        let agent = variable("MICROVM_TEST_AGENT")?;
        let launcher = Utf8PathBuf::from(variable("MICROVM_TEST_PROGRAM")?);
        // Beside what it links to, and open to the users that VMMs run under.
        let directory = tempfile::Builder::new().prefix("test-").tempdir_in(&furnished).unwrap();
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let mut link = Command::new("cp");
        link.args(["--archive", "--link"])
            .args(["images", "kernels"].map(|part| format!("{furnished}/{part}")));
        assert!(link.arg(directory.path()).status().unwrap().success(), "the root could not be furnished");
        let root = Utf8PathBuf::from_path_buf(directory.path().to_owned()).unwrap();
        let config = ImagesConfig::new(root.clone(), AgentSource::Path(agent.into()));
        let images = Images::open(config, Arc::new(SystemClock)).unwrap();
        let storage = Disks::open(DisksConfig::new(root), Arc::new(SystemClock)).unwrap();
        let driver = Arc::new(Qemu::new(QemuConfig { write_tracking, ..QemuConfig::new(launcher.clone()) }));
        Some(Self { driver, launcher, kernel, storage, images, directory })
    }

    pub(crate) fn root(&self) -> Utf8PathBuf {
        Utf8PathBuf::from_path_buf(self.directory.path().to_owned()).unwrap()
    }

    /// A machine of the default image and kernel.
    pub(crate) async fn make_spec(&self, id: &VmId) -> MachineSpec {
        let files = self.storage.create_vm_files(id, DISK_MIB).await.unwrap();
        let kernel = self.images.kernel(self.kernel).await.unwrap();
        let image = std::env::var("MICROVM_TEST_IMAGE").ok().filter(|image| !image.contains('/'));
        let image = self.images.image(image.as_deref().unwrap_or("debian-python")).await.unwrap();
        let devices = [MachineDisk::image(image.path), files.scratch].map(Device::Disk).into();
        MachineSpec {
            id: id.clone(),
            name: id.into(),
            vcpus: 1,
            memory_mib: 256,
            cpu_percent: None,
            start: MachineStart::Boot(KernelBoot {
                kernel: kernel.path,
                initramfs: kernel.initramfs,
                discovery: kernel.info.discovery,
                arguments: Vec::new(),
                zero_memory: Some(self.storage.zero_memory(256).await.unwrap()),
            }),
            devices,
            directory: files.directory,
        }
    }

    /// Neither processes nor control groups of any VM of this root are left.
    pub(crate) fn expect_nothing_left(&self) {
        for entry in fs::read_dir(self.root().join("vms")).unwrap() {
            let id = entry.unwrap().file_name().into_string().unwrap().parse().unwrap();
            let left = self.processes_of(&id);
            assert!(left.is_empty(), "processes of {id} are left: {left:?}");
            for hierarchy in ["", "memory/", "pids/", "cpu/"] {
                let group = format!("/sys/fs/cgroup/{hierarchy}microvm/{id}");
                assert!(!Utf8Path::new(&group).exists(), "{group} is left");
            }
        }
    }

    /// The VMM processes of a VM: those with its id on their command line, and a file of ours in their cage.
    pub(crate) fn processes_of(&self, id: &VmId) -> Vec<i32> {
        let (mark, root) = (format!("guest={id}"), self.root());
        let mut found = Vec::new();
        for entry in fs::read_dir("/proc").unwrap() {
            let Some(pid) = entry.unwrap().file_name().to_str().and_then(|name| name.parse().ok()) else {
                continue;
            };
            let Ok(line) = fs::read(format!("/proc/{pid}/cmdline")) else { continue };
            let Ok(mounts) = fs::read_to_string(format!("/proc/{pid}/mountinfo")) else { continue };
            if line.split(|byte| *byte == 0).any(|word| word == mark.as_bytes())
                && mounts.contains(root.as_str())
            {
                found.push(pid);
            }
        }
        found
    }
}

impl Drop for Bench {
    /// A test that failed leaves no machine either.
    fn drop(&mut self) {
        for entry in fs::read_dir(self.root().join("vms")).into_iter().flatten().flatten() {
            let Some(id) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
            for pid in self.processes_of(&id) {
                let _ = Command::new("kill").args(["-9", &pid.to_string()]).status();
            }
        }
    }
}

/// Steps of a save whose guest nobody holds back, with layers that were made ahead.
#[allow(dead_code, reason = "not every test file saves machines")]
pub(crate) struct Steps(pub(crate) Vec<DiskChange>);

#[async_trait::async_trait]
impl PauseSteps for Steps {
    async fn hold_input(&self) -> Option<InputProbe> {
        None
    }

    async fn freeze_disks(&self) -> Result<Vec<DiskChange>, StorageError> {
        Ok(self.0.clone())
    }
}

/// A save that needs no file of its own.
#[allow(dead_code, reason = "not every test file saves machines")]
pub(crate) fn save_to(layers: Vec<DiskChange>, stay_paused: bool) -> BranchRequest {
    BranchRequest { steps: Arc::new(Steps(layers)), directory: "/nonexistent".into(), stay_paused }
}
