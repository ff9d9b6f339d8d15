//! The floor: QEMU bare on the host, with the same kernel, image and options, and nothing of ours around it.

use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use camino::Utf8PathBuf;
use microvm_driver_disks::Disks;
use microvm_driver_host::SystemClock;
use microvm_driver_images::Images;
use microvm_driver_qemu::Qemu;
use microvm_ports::guest::{GuestEndpoint, GuestMeasure, Identity};
use microvm_ports::hypervisor::{Capabilities, KernelBoot, MachineDisk, MachineSpec, MachineStart};
use microvm_ports::storage::DiskFormat;
use microvm_ports::{Clock, Guest, GuestConnector, Hypervisor, ImageStore, KernelStore, VmStorage};
use microvm_types::VmId;
use tokio::process::{Child, Command};

use crate::bench::failed;
use crate::error::CliError;
use crate::settings::Settings;
use crate::wiring;

/// How long a bare machine may take to answer.
const LIMIT: Duration = Duration::from_secs(60);
/// Later than every epoch a saved machine has seen.
const CHILD_EPOCH: u64 = 1_000_000;
/// Image, memory and disk of every machine of the bench.
pub(super) const IMAGE: &str = "debian-python";
pub(super) const MEMORY_MIB: u32 = 512;
pub(super) const DISK_MIB: u32 = 4_096;

/// Makes bare machines.
pub(super) struct BareHost {
    pub(super) images: Images,
    pub(super) disks: Disks,
    pub(super) qemu: Qemu,
    pub(super) clock: Arc<dyn Clock>,
}

/// A bare machine that answered; ended and removed by [`BareHost::remove`].
pub(super) struct BareMachine {
    pub(super) id: VmId,
    child: Child,
    /// From the start of QEMU to the agent's answer.
    pub(super) took: Duration,
    pub(super) guest: Arc<dyn Guest>,
}

impl BareMachine {
    /// Measures the guest.
    pub(super) fn measuring(&self) -> Result<&dyn GuestMeasure, CliError> {
        let measuring = self.guest.measuring();
        measuring.ok_or_else(|| failed("measuring the guest", &"its driver has no way to"))
    }
}

impl BareHost {
    pub(super) async fn open(settings: &Settings) -> Result<Self, CliError> {
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let stores = wiring::open_stores(settings, Arc::clone(&clock)).await;
        let stores = stores.map_err(|error| failed("opening the stores", &format!("{error:#}")))?;
        let config =
            wiring::qemu_config().map_err(|error| failed("reading the settings", &format!("{error:#}")))?;
        Ok(Self { images: stores.images, disks: stores.disks, qemu: Qemu::new(config), clock })
    }

    pub(super) async fn report(&self) -> Result<Capabilities, CliError> {
        self.qemu.probe().await.map_err(|error| failed("probing the host", &error))
    }

    /// Whether there is a kernel of that name.
    pub(super) async fn has_kernel(&self, name: &str) -> bool {
        self.images.kernel(name).await.is_ok()
    }

    pub(super) fn fresh_id(&self) -> VmId {
        let mut random = [0; 8];
        self.clock.fill_random(&mut random);
        VmId::from_parts(self.clock.now_ms().unsigned_abs(), u64::from_le_bytes(random))
    }

    /// Boots a bare machine. Files are made before the clock starts.
    pub(super) async fn boot(&self, kernel: &str) -> Result<BareMachine, CliError> {
        let step = |what: &'static str| move |error: microvm_ports::StorageError| failed(what, &error);
        let kernel = self.images.kernel(kernel).await.map_err(step("finding the kernel"))?;
        let image = self.images.image(IMAGE).await.map_err(step("finding the image"))?;
        let id = self.fresh_id();
        let files = self.disks.create_vm_files(&id, DISK_MIB).await.map_err(step("making a disk"))?;
        let memory_base = self.disks.zero_memory(MEMORY_MIB).await.map_err(step("making the memory file"))?;
        // QEMU on its own opens this file for writing; it is private to this machine.
        let memory = files.directory.join("memory.bare");
        let made = std::fs::File::create(&memory).and_then(|file| file.set_len(u64::from(MEMORY_MIB) << 20));
        made.map_err(|error| failed("making the memory file", &error))?;
        drop(memory_base);
        let spec = MachineSpec {
            id: id.clone(),
            name: microvm_types::Name::from(&id),
            vcpus: 1,
            memory_mib: MEMORY_MIB,
            memory_base: memory,
            start: MachineStart::Boot(KernelBoot {
                kernel: kernel.path,
                initramfs: kernel.initramfs,
                discovery: kernel.info.discovery,
                arguments: Vec::new(),
            }),
            disks: vec![
                MachineDisk {
                    path: image.path,
                    format: DiskFormat::Raw,
                    backing: Vec::new(),
                    read_only: true,
                    serial: "image".to_owned(),
                },
                files.scratch,
            ],
            shares: Vec::new(),
            directory: files.directory.clone(),
        };
        self.start(&spec).await
    }

    /// Starts a bare machine; what was made for it is removed if that fails.
    pub(super) async fn start(&self, spec: &MachineSpec) -> Result<BareMachine, CliError> {
        let (program, arguments) =
            self.qemu.bare_command(spec).await.map_err(|error| failed("describing the machine", &error))?;
        let outcome = start(spec, program, arguments).await;
        if outcome.is_err() {
            let _ = self.disks.remove_vm_files(&spec.id).await;
        }
        outcome
    }

    /// Ends a bare machine and removes its files.
    pub(super) async fn remove(&self, mut machine: BareMachine) -> Result<(), CliError> {
        machine.guest.close();
        let _ = machine.child.kill().await;
        let removed = self.disks.remove_vm_files(&machine.id).await;
        removed.map_err(|error| failed("removing a bare machine", &error))
    }
}

/// Whether somebody listens on a unix socket, found without connecting to it: a connection would count as a host.
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
    spec: &MachineSpec,
    program: Utf8PathBuf,
    arguments: Vec<String>,
) -> Result<BareMachine, CliError> {
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
        listening(&spec.directory.join("qmp.sock"), started).await;
        let loaded = Qemu::bare_load(&spec.directory, &state.device_state).await;
        loaded.map_err(|error| failed("loading a state into a bare machine", &error))?;
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
    let connected =
        wiring::connector().connect(&GuestEndpoint::UnixSocket(socket), epoch, &identity, LIMIT).await;
    let guest = connected.map_err(|error| failed("reaching the agent of a bare machine", &error))?;
    Ok(BareMachine { id: spec.id.clone(), child, took: started.elapsed(), guest })
}

impl BareMachine {
    /// Process number of its QEMU.
    pub(super) fn pid(&self) -> u32 {
        self.child.id().unwrap_or(0)
    }
}
