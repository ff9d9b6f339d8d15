//! Suite of every [`Hypervisor`].

mod branches;
mod shares;
mod states;
mod waiting;

use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use camino::Utf8PathBuf;
use microvm_ports::capabilities::{LoadKind, SaveKind};
use microvm_ports::guest::{Guest, GuestConnector, Identity};
use microvm_ports::hypervisor::{
    Abilities, Device, Hypervisor, LaunchError, Machine, MachineError, MachineExit, MachineShare,
    MachineSpec, MachineStart, MachineState,
};
use microvm_ports::snapshot::SnapshotStore;
use microvm_ports::storage::VmStorage;
use microvm_types::VmId;
use microvm_types::exec::ExecRequest;
use microvm_types::guest::ShutdownMode;
use tokio::sync::watch;

use crate::{Must, Suite};

/// Gives the suite its machines.
#[async_trait]
pub trait HypervisorHarness: Send + Sync {
    /// The driver.
    fn hypervisor(&self) -> Arc<dyn Hypervisor>;

    /// A second driver object over the same host, as a restarted server has it.
    fn restarted(&self) -> Arc<dyn Hypervisor>;

    /// Connects to guests.
    fn connector(&self) -> Arc<dyn GuestConnector>;

    /// A machine that boots to an agent, with its directory and disks made, for a VM of this id.
    async fn spec(&self, id: &VmId) -> MachineSpec;

    /// Storage of the directories and disks of [`HypervisorHarness::spec`]; keeps the states of branched machines.
    fn snapshots(&self) -> Arc<dyn SnapshotStore>;

    /// The same storage, for the directories of VMs.
    fn storage(&self) -> Arc<dyn VmStorage>;

    /// Size of the scratch disks of [`HypervisorHarness::spec`] in MiB.
    fn disk_mib(&self) -> u32;

    /// VMM processes that belong to a VM directory, counted by the host and not by the driver.
    async fn processes(&self, spec: &MachineSpec) -> usize;

    /// Ends the VMM as a stranger would (`kill -9`).
    async fn kill_vmm(&self, spec: &MachineSpec);

    /// A command that makes the guest's kernel panic; `None` if the kernel used cannot.
    fn panic_command(&self) -> Option<Vec<String>> {
        Some(vec!["sh".to_owned(), "-c".to_owned(), "echo c > /proc/sysrq-trigger".to_owned()])
    }

    /// Longest time from a machine's resume to its agent's answer.
    fn boot_limit(&self) -> Duration {
        Duration::from_secs(60)
    }
}

/// Time that a machine has to end.
pub(super) const DEADLINE: Duration = Duration::from_secs(20);

pub(super) struct Scene<'a> {
    pub(super) harness: &'a dyn HypervisorHarness,
    next: AtomicU64,
}

pub(super) struct Launched {
    pub(super) spec: MachineSpec,
    pub(super) machine: Arc<dyn Machine>,
}

impl Scene<'_> {
    pub(super) fn id(&self) -> VmId {
        VmId::from_parts(1_700_000_000_000, self.next.fetch_add(1, Ordering::Relaxed))
    }

    pub(super) async fn spec(&self) -> MachineSpec {
        self.harness.spec(&self.id()).await
    }

    /// Abilities that the driver claims on this host.
    pub(super) async fn abilities(&self) -> Abilities {
        self.harness.hypervisor().probe().await.must("probing").abilities
    }

    async fn launch(&self) -> Launched {
        let spec = self.spec().await;
        let machine = self.harness.hypervisor().launch(&spec).await.must("launching");
        Launched { spec, machine }
    }

    pub(super) async fn boot(&self) -> (Launched, Arc<dyn Guest>) {
        let launched = self.launch().await;
        launched.machine.resume().await.must("resuming");
        let guest = self.connect(&launched, 1).await;
        (launched, guest)
    }

    async fn connect(&self, launched: &Launched, epoch: u64) -> Arc<dyn Guest> {
        let identity = Identity {
            host_name: "conformance".to_owned(),
            machine_id: "0123456789abcdef0123456789abcdef".to_owned(),
            entropy: [7; 32],
            ..Identity::default()
        };
        let limit = self.harness.boot_limit();
        let endpoint = launched.machine.endpoint();
        self.harness
            .connector()
            .connect(&endpoint, epoch, &identity, limit)
            .await
            .must("connecting to the guest")
    }

    pub(super) async fn end(&self, launched: &Launched) {
        launched.machine.kill(DEADLINE).await.must("ending the machine");
        let left = self.harness.processes(&launched.spec).await;
        assert_eq!(left, 0, "{left} processes are left after kill");
    }
}

pub(super) async fn reach(state: &mut watch::Receiver<MachineState>, wanted: MachineState) {
    let reached = tokio::time::timeout(DEADLINE, state.wait_for(|now| *now == wanted)).await;
    assert!(matches!(reached, Ok(Ok(_))), "it did not get to {wanted:?}");
}

async fn exit_of(state: &mut watch::Receiver<MachineState>) -> MachineExit {
    let ended = state.wait_for(|now| matches!(now, MachineState::Exited(_)));
    match tokio::time::timeout(DEADLINE * 2, ended).await {
        Ok(Ok(now)) => match &*now {
            MachineState::Exited(exit) => exit.clone(),
            other => panic!("it is {other:?}"),
        },
        _ => panic!("it did not end"),
    }
}

/// Runs every check over machines of `harness`.
///
/// # Panics
/// If a check fails.
pub async fn run(harness: &dyn HypervisorHarness) {
    let mut suite = Suite::new("hypervisor", harness.boot_limit() + DEADLINE * 3);
    // Other runs on this host are not to meet these machines' control groups.
    let first = RandomState::new().build_hasher().finish();
    let scene = Scene { harness, next: AtomicU64::new(first) };
    suite.check("it says what it is", probe(&scene)).await;
    suite.check("a launched machine is paused and runs when told", launch_paused(&scene)).await;
    suite.check("pause and resume may be repeated", idempotent(&scene)).await;
    suite.check("a killed machine is gone and says so", kill(&scene)).await;
    suite.check("a machine is found again after its handle was dropped", adopt(&scene)).await;
    suite.check("a limit of processor time holds or is refused", cpu_limit(&scene)).await;
    suite.check("a record without a machine is Gone", adopt_gone(&scene)).await;
    suite.check("sweep leaves no process", sweep(&scene)).await;
    suite.check("impossible machines are refused and leave nothing", impossible(&scene)).await;
    suite.check("folders of the host are offered or refused", shares::folders(&scene)).await;
    suite.check("two machines live beside each other", two(&scene)).await;
    suite.check("counters and console are there", counters(&scene)).await;
    suite.check("a guest that powers off is told from others", exits_shutdown(&scene)).await;
    suite.check("a guest that resets is told from others", exits_reset(&scene)).await;
    suite.check("a guest that panics is told from others", exits_panic(&scene)).await;
    suite.check("a VMM killed by a stranger is told from others", exits_vmm(&scene)).await;
    branches::run(&mut suite, &scene).await;
    states::run(&mut suite, &scene).await;
    waiting::run(&mut suite, &scene).await;
    suite.finish();
}

async fn probe(scene: &Scene<'_>) {
    let hypervisor = scene.harness.hypervisor();
    let report = hypervisor.probe().await.must("probing");
    assert_eq!(report.driver, hypervisor.name());
    assert!(!report.version.is_empty() && !report.accelerator.reason.is_empty(), "{report:?}");
    // What is claimed is what is there: absence is visible before a call.
    let Abilities { boot, save, load, fork, standby, balloon, most_devices, vcpu_most, .. } =
        report.abilities;
    assert!(boot.kernel || boot.firmware, "it cannot boot");
    assert!(vcpu_most > 0, "no machine can have a processor");
    assert_eq!(hypervisor.loader().is_some(), load != LoadKind::None, "loading of states");
    assert_eq!(hypervisor.standby().is_some(), standby, "standby VMMs");
    assert!(!standby || load != LoadKind::None, "a standby VMM has no state to wait for");
    assert!(
        !fork.state || save != SaveKind::None && load != LoadKind::None,
        "a fork needs both save and load"
    );
    let launched = scene.launch().await;
    assert_eq!(launched.machine.brancher().is_some(), save != SaveKind::None, "saving of machines");
    assert_eq!(launched.machine.balloon().is_some(), balloon, "a balloon");
    scene.end(&launched).await;
    too_many_devices(scene, most_devices).await;
}

/// A machine with one share more than fits is refused, and leaves nothing.
async fn too_many_devices(scene: &Scene<'_>, most: usize) {
    let mut spec = scene.spec().await;
    let source = spec.directory.canonicalize_utf8().must("finding the machine's own directory");
    spec.devices.extend((0..=most).map(|index| {
        let tag = format!("share{index}");
        Device::Share(MachineShare { source: source.clone(), tag, read_only: true })
    }));
    match scene.harness.hypervisor().launch(&spec).await {
        Err(LaunchError::Spec(_)) => {}
        Err(error) => panic!("wrong error: {error}"),
        Ok(_) => panic!("a machine was launched with {} further devices of {most}", most + 1),
    }
    assert_eq!(scene.harness.processes(&spec).await, 0, "a process is left");
}

async fn cpu_limit(scene: &Scene<'_>) {
    let mut spec = scene.spec().await;
    spec.cpu_percent = Some(60);
    let claimed = scene.abilities().await.cpu_limit;
    match scene.harness.hypervisor().launch(&spec).await {
        Ok(machine) if claimed => scene.end(&Launched { spec, machine }).await,
        Err(LaunchError::Spec(_)) if !claimed => {
            assert_eq!(scene.harness.processes(&spec).await, 0, "a process is left");
        }
        Ok(_) => panic!("a machine was launched without the limit that it was to have"),
        Err(error) => panic!("wrong error: {error}"),
    }
}

async fn launch_paused(scene: &Scene<'_>) {
    let launched = scene.launch().await;
    assert_eq!(*launched.machine.state().borrow(), MachineState::Paused);
    assert!(scene.harness.processes(&launched.spec).await > 0, "no process was seen");
    launched.machine.resume().await.must("resuming");
    reach(&mut launched.machine.state(), MachineState::Running).await;
    let guest = scene.connect(&launched, 1).await;
    guest.ping().await.must("pinging");
    scene.end(&launched).await;
}

async fn idempotent(scene: &Scene<'_>) {
    let (launched, guest) = scene.boot().await;
    guest.expect_heartbeats(false);
    for _ in 0..2 {
        launched.machine.pause().await.must("pausing");
        launched.machine.pause().await.must("pausing again");
        reach(&mut launched.machine.state(), MachineState::Paused).await;
        launched.machine.resume().await.must("resuming");
        launched.machine.resume().await.must("resuming again");
        reach(&mut launched.machine.state(), MachineState::Running).await;
    }
    guest.ping().await.must("pinging after all this");
    scene.end(&launched).await;
}

async fn kill(scene: &Scene<'_>) {
    let launched = scene.launch().await;
    let mut state = launched.machine.state();
    assert_eq!(launched.machine.kill(DEADLINE).await.must("killing"), MachineExit::Killed);
    assert_eq!(exit_of(&mut state).await, MachineExit::Killed);
    assert_eq!(scene.harness.processes(&launched.spec).await, 0, "a process is left");
    assert_eq!(launched.machine.kill(DEADLINE).await.must("killing again"), MachineExit::Killed);
    let error = launched.machine.resume().await.must_fail("resuming a dead machine");
    assert!(matches!(error, MachineError::Exited(MachineExit::Killed)), "wrong error: {error}");
    let error = launched.machine.pause().await.must_fail("pausing a dead machine");
    assert!(matches!(error, MachineError::Exited(_)), "wrong error: {error}");
}

async fn adopt(scene: &Scene<'_>) {
    let (launched, guest) = scene.boot().await;
    let Launched { spec, machine } = launched;
    let record = machine.record();
    assert_eq!(record.driver, scene.harness.hypervisor().name());
    guest.close();
    drop((guest, machine));
    assert!(scene.harness.processes(&spec).await > 0, "the machine went with its handle");
    let hypervisor = scene.harness.restarted();
    let machine = hypervisor.adopt(&spec.id, &spec.directory, &record).await.must("adopting");
    reach(&mut machine.state(), MachineState::Running).await;
    let launched = Launched { spec, machine };
    let guest = scene.connect(&launched, 2).await;
    guest.ping().await.must("pinging after the adoption");
    assert_eq!(launched.machine.record(), record);
    launched.machine.pause().await.must("pausing an adopted machine");
    launched.machine.resume().await.must("resuming an adopted machine");
    let mut state = launched.machine.state();
    scene.end(&launched).await;
    assert_eq!(exit_of(&mut state).await, MachineExit::Killed);
}

async fn adopt_gone(scene: &Scene<'_>) {
    let launched = scene.launch().await;
    let record = launched.machine.record();
    scene.end(&launched).await;
    let spec = &launched.spec;
    let outcome = scene.harness.restarted().adopt(&spec.id, &spec.directory, &record).await;
    match outcome {
        Err(LaunchError::Gone(_)) => {}
        Err(error) => panic!("wrong error: {error}"),
        Ok(_) => panic!("a dead machine was adopted"),
    }
}

async fn sweep(scene: &Scene<'_>) {
    let launched = scene.launch().await;
    let Launched { spec, machine } = launched;
    drop(machine);
    let hypervisor = scene.harness.restarted();
    hypervisor.sweep(&spec.id, &spec.directory, None).await.must("sweeping");
    let left = scene.harness.processes(&spec).await;
    assert_eq!(left, 0, "{left} processes are left after the sweep");
    hypervisor.sweep(&spec.id, &spec.directory, None).await.must("sweeping where nothing is");
}

async fn impossible(scene: &Scene<'_>) {
    let good = scene.spec().await;
    let no_processors = MachineSpec { vcpus: 0, ..good.clone() };
    let no_memory = MachineSpec { memory_mib: 0, ..good.clone() };
    for (what, spec) in [("no processors", no_processors), ("no memory", no_memory)] {
        match scene.harness.hypervisor().launch(&spec).await {
            Err(LaunchError::Spec(_)) => {}
            Err(error) => panic!("{what}: wrong error: {error}"),
            Ok(_) => panic!("{what}: it was launched"),
        }
    }
    let mut no_kernel = good.clone();
    if let MachineStart::Boot(boot) = &mut no_kernel.start {
        boot.kernel = Utf8PathBuf::from("/nonexistent/vmlinux");
    }
    assert!(scene.harness.hypervisor().launch(&no_kernel).await.is_err(), "it was launched without a kernel");
    assert_eq!(scene.harness.processes(&good).await, 0, "a process is left");
    let machine = scene.harness.hypervisor().launch(&good).await.must("launching where others failed");
    scene.end(&Launched { spec: good, machine }).await;
}

async fn two(scene: &Scene<'_>) {
    let (first, second) = (scene.launch().await, scene.launch().await);
    first.machine.kill(DEADLINE).await.must("ending one");
    second.machine.resume().await.must("resuming the other");
    scene.connect(&second, 1).await.ping().await.must("pinging the other");
    scene.end(&second).await;
}

async fn counters(scene: &Scene<'_>) {
    let (launched, _guest) = scene.boot().await;
    let counters = launched.machine.counters().await.must("reading counters");
    assert!(counters.memory_pss > 0 && counters.memory_rss > 0, "{counters:?}");
    let hypervisor = scene.harness.hypervisor();
    let directory = &launched.spec.directory;
    let console = hypervisor.console(directory, None, 1 << 20).await.must("reading the console").bytes;
    assert!(!console.is_empty(), "the console of a booted machine is empty");
    let newest = hypervisor.console(directory, None, 5).await.must("reading the end of the console");
    assert!(newest.bytes.len() <= 5, "{} bytes were given of 5", newest.bytes.len());
    assert_eq!(newest.offset + newest.bytes.len() as u64, newest.end, "the newest bytes are not the last");
    let some = hypervisor.console(directory, Some(1), 4).await.must("reading some of the console");
    assert_eq!((some.offset, some.bytes.as_slice()), (1, &console[1..5]), "bytes are not at their offset");
    scene.end(&launched).await;
    let kept = hypervisor.console(directory, None, 1 << 20).await.must("reading the console after the end");
    assert!(kept.bytes.len() >= console.len().min(4096), "the console went with the machine");
}

async fn exits_shutdown(scene: &Scene<'_>) {
    let (launched, guest) = scene.boot().await;
    let mut state = launched.machine.state();
    guest.shutdown(ShutdownMode::PowerOff, Duration::from_secs(1)).await.must("asking for power-off");
    assert_eq!(exit_of(&mut state).await, MachineExit::GuestShutdown);
    scene.end(&launched).await;
}

async fn exits_reset(scene: &Scene<'_>) {
    let (launched, guest) = scene.boot().await;
    let mut state = launched.machine.state();
    guest.shutdown(ShutdownMode::Reboot, Duration::from_secs(1)).await.must("asking for a reboot");
    assert_eq!(exit_of(&mut state).await, MachineExit::GuestReset);
    scene.end(&launched).await;
}

async fn exits_panic(scene: &Scene<'_>) {
    let Some(command) = scene.harness.panic_command() else { return };
    let (launched, guest) = scene.boot().await;
    let mut state = launched.machine.state();
    // The answer may or may not come before the end.
    let _ = guest.exec(&ExecRequest { command, ..ExecRequest::default() }).await;
    assert_eq!(exit_of(&mut state).await, MachineExit::GuestPanic);
    let mut closed = guest.closed();
    let told = tokio::time::timeout(DEADLINE, closed.wait_for(Option::is_some)).await;
    assert!(matches!(told, Ok(Ok(_))), "the channel did not notice that the machine ended");
    scene.end(&launched).await;
}

async fn exits_vmm(scene: &Scene<'_>) {
    let (launched, _guest) = scene.boot().await;
    let mut state = launched.machine.state();
    scene.harness.kill_vmm(&launched.spec).await;
    let exit = exit_of(&mut state).await;
    assert!(matches!(exit, MachineExit::Vmm(_)), "it was told as {exit:?}");
    scene.end(&launched).await;
}
