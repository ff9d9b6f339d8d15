//! The floor: QEMU bare on the host, with the same kernel, image and options, and nothing of ours around it.

use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use camino::Utf8PathBuf;
use microvm_driver_qemu::Qemu;
use microvm_ports::guest::{GuestEndpoint, GuestMeasure, Identity};
use microvm_ports::hypervisor::{Capabilities, Device, KernelBoot, MachineDisk, MachineSpec, MachineStart};
use microvm_ports::storage::VmFiles;
use microvm_ports::{
    Clock, Guest, GuestConnector, Hypervisor, ImageStore, KernelStore, SnapshotStore, VmStorage,
};
use microvm_types::VmId;
use tokio::process::{Child, Command};

use crate::error::BenchError;
use crate::error::failed;
use crate::{bare_line, bare_qmp};

/// Time that a bare machine may take to answer.
const LIMIT: Duration = Duration::from_secs(60);
/// Later than every epoch a saved machine has seen.
const CHILD_EPOCH: u64 = 1_000_000;
/// Image, memory and disk of every machine of the bench.
pub(crate) const IMAGE: &str = "debian-python";
pub(crate) const MEMORY_MIB: u32 = 512;
pub(crate) const DISK_MIB: u32 = 4_096;

/// Maker of bare machines: the stores and drivers of the installation, without its server.
pub struct BareHost {
    /// Images of the root.
    pub images: Arc<dyn ImageStore>,
    /// Kernels of the root.
    pub kernels: Arc<dyn KernelStore>,
    /// Disks and memory files of the root.
    pub disks: Arc<dyn VmStorage>,
    /// Saved states of the root.
    pub snapshots: Arc<dyn SnapshotStore>,
    /// The driver whose command line is taken.
    pub qemu: Qemu,
    /// Driver of guest channels.
    pub connector: Arc<dyn GuestConnector>,
    /// Source of ids.
    pub clock: Arc<dyn Clock>,
}

/// A bare machine that answered; ended and removed by [`BareHost::remove`].
pub(crate) struct BareMachine {
    pub(crate) id: VmId,
    child: Child,
    /// From the start of QEMU to the agent's answer.
    pub(crate) took: Duration,
    pub(crate) guest: Arc<dyn Guest>,
}

impl BareMachine {
    /// Measures the guest.
    pub(crate) fn measuring(&self) -> Result<&dyn GuestMeasure, BenchError> {
        let measuring = self.guest.measuring();
        measuring.ok_or_else(|| failed("measuring the guest", &"its driver has no way to"))
    }
}

impl BareHost {
    pub(crate) async fn report(&self) -> Result<Capabilities, BenchError> {
        self.qemu.probe().await.map_err(|error| failed("probing the host", &error))
    }

    /// Returns true if there is a kernel of that name.
    pub(crate) async fn has_kernel(&self, name: &str) -> bool {
        self.kernels.kernel(name).await.is_ok()
    }

    pub(crate) fn fresh_id(&self) -> VmId {
        let mut random = [0; 8];
        self.clock.fill_random(&mut random);
        VmId::from_parts(self.clock.now_ms().unsigned_abs(), u64::from_le_bytes(random))
    }

    /// Boots a bare machine. Files are made before the clock starts.
    pub(crate) async fn boot(&self, kernel: &str) -> Result<BareMachine, BenchError> {
        let step = |what: &'static str| move |error: microvm_ports::StorageError| failed(what, &error);
        let kernel = self.kernels.kernel(kernel).await.map_err(step("finding the kernel"))?;
        let image = self.images.image(IMAGE).await.map_err(step("finding the image"))?;
        let id = self.fresh_id();
        let files = self.disks.create_vm_files(&id, DISK_MIB).await.map_err(step("making a disk"))?;
        let memory_base = self.disks.zero_memory(MEMORY_MIB).await.map_err(step("making the memory file"))?;
        // QEMU on its own opens this file for writing; it is private to this machine.
        let memory = files.directory.join("memory.bare");
        let made = std::fs::File::create(&memory).and_then(|file| file.set_len(u64::from(MEMORY_MIB) << 20));
        made.map_err(|error| failed("making the memory file", &error))?;
        drop(memory_base);
        let start = MachineStart::Boot(KernelBoot {
            kernel: kernel.path,
            initramfs: kernel.initramfs,
            discovery: kernel.info.discovery,
            arguments: Vec::new(),
            zero_memory: Some(memory),
        });
        let spec = bare_spec(id, MEMORY_MIB, start, image.path, files);
        self.start(&spec).await
    }

    /// Starts a bare machine; what was made for it is removed if that fails.
    pub(crate) async fn start(&self, spec: &MachineSpec) -> Result<BareMachine, BenchError> {
        let recipe =
            self.qemu.recipe(spec).await.map_err(|error| failed("describing the machine", &error))?;
        let arguments = bare_line::arguments(&recipe, &spec.directory);
        let outcome = start(&*self.connector, spec, recipe.program, arguments).await;
        if outcome.is_err() {
            let _ = self.disks.remove_vm_files(&spec.id).await;
        }
        outcome
    }

    /// Ends a bare machine and removes its files.
    pub(crate) async fn remove(&self, mut machine: BareMachine) -> Result<(), BenchError> {
        machine.guest.close();
        let _ = machine.child.kill().await;
        let removed = self.disks.remove_vm_files(&machine.id).await;
        removed.map_err(|error| failed("removing a bare machine", &error))
    }
}

/// A bare machine of one processor with these files.
pub(crate) fn bare_spec(
    id: VmId,
    memory_mib: u32,
    start: MachineStart,
    image: Utf8PathBuf,
    files: VmFiles,
) -> MachineSpec {
    MachineSpec {
        name: microvm_types::Name::from(&id),
        id,
        vcpus: 1,
        memory_mib,
        cpu_percent: None,
        start,
        devices: [MachineDisk::image(image), files.scratch].map(Device::Disk).into(),
        directory: files.directory,
    }
}

/// Returns true if a process listens on a unix socket. Nothing connects to it: a connection would count as a host.
fn listens(socket: &Utf8PathBuf) -> bool {
    if !socket.exists() {
        return false;
    }
    // Fourth field: flags of the kernel, of which 0x10000 is "accepts connections".
    let Ok(table) = std::fs::read_to_string("/proc/net/unix") else { return socket.exists() };
    table.lines().any(|line| {
        let mut fields = line.split_ascii_whitespace();
        fields.nth(3) == Some("00010000") && fields.last() == Some(socket.as_str())
    })
}

/// Waits until somebody listens on a socket. Nobody tells when a bare QEMU has made its sockets; half a millisecond of
/// waiting adds nothing that counts. A socket that exists but refuses is between `bind` and `listen`.
async fn listening(socket: &Utf8PathBuf, since: Instant) {
    while !listens(socket) && since.elapsed() < LIMIT {
        tokio::time::sleep(Duration::from_micros(500)).await;
    }
}

async fn start(
    connector: &dyn GuestConnector,
    spec: &MachineSpec,
    program: Utf8PathBuf,
    arguments: Vec<String>,
) -> Result<BareMachine, BenchError> {
    let started = Instant::now();
    let child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| failed("starting a bare QEMU", &error))?;
    let mut epoch = 1;
    if let MachineStart::Incoming(state) = &spec.start {
        listening(&spec.directory.join(bare_qmp::SOCKET), started).await;
        let device_state = state.parts.as_single();
        let device_state = device_state
            .ok_or_else(|| failed("loading a state", &"it has other parts than a device state"))?;
        let (directory, device_state) = (spec.directory.clone(), device_state.clone());
        let loaded = tokio::task::spawn_blocking(move || bare_qmp::load(&directory, &device_state)).await;
        loaded.map_err(|error| failed("loading a state into a bare machine", &error))??;
        epoch = CHILD_EPOCH;
    }
    let socket = spec.directory.join("agent.sock");
    listening(&socket, started).await;
    let identity = Identity {
        host_name: "bare".to_owned(),
        machine_id: "0".repeat(32),
        entropy: [1; 32],
        environment: vec![(
            "PATH".to_owned(),
            "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_owned(),
        )],
        ..Identity::default()
    };
    let connected = connector.connect(&GuestEndpoint::UnixSocket(socket), epoch, &identity, LIMIT).await;
    let guest = connected.map_err(|error| failed("reaching the agent of a bare machine", &error))?;
    Ok(BareMachine { id: spec.id.clone(), child, took: started.elapsed(), guest })
}

impl BareMachine {
    /// Process number of its QEMU.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id().unwrap_or(0)
    }
}
