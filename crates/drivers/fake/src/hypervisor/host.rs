//! Starts fake machines.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use camino::{Utf8Path, Utf8PathBuf};
use microvm_ports::branch::Compatibility;
use microvm_ports::capabilities::{ForkKinds, LoadKind, MemoryShape, SaveKind};
use microvm_ports::guest::CloseReason;
use microvm_ports::hypervisor::{
    Abilities, Accelerator, AcceleratorKind, Capabilities, ConsolePart, Feature, Hypervisor, LaunchError,
    Loader, Machine, MachineExit, MachineRecord, MachineSpec, MachineStart, MachineState, Sharing, Standby,
};
use microvm_ports::storage::KernelInfo;
use microvm_types::VmId;
use tokio::task::JoinSet;

use crate::guest::disks::Disks;
use crate::guest::system::GuestSystem;
use crate::hypervisor::balloon::{BalloonDriver, FakeBalloon};
use crate::hypervisor::branch;
use crate::hypervisor::character::Character;
use crate::hypervisor::connector::FakeConnector;
use crate::hypervisor::machine::{Console, FakeMachine, Saving};
use crate::script::{Operation, Script, Verdict};

/// A host full of fake machines; clones share it.
#[derive(Debug, Clone, Default)]
pub struct FakeHypervisor {
    world: Arc<World>,
}

#[derive(Debug, Default)]
pub(crate) struct World {
    machines: Mutex<HashMap<Utf8PathBuf, Arc<FakeMachine>>>,
    pub(crate) disks: Arc<Disks>,
    consoles: Mutex<HashMap<Utf8PathBuf, Console>>,
    /// One task per machine that ends it when its guest wants to.
    watchers: Mutex<JoinSet<()>>,
    /// Directories in which a VMM waits.
    prepared: Mutex<BTreeMap<Utf8PathBuf, VmId>>,
    launched: AtomicU64,
    /// Of the VMM, if it was changed.
    version: Mutex<Option<String>>,
    character: Character,
    no_branches: AtomicBool,
    no_shares: AtomicBool,
    /// Set if its machines have balloons.
    balloon: Mutex<Option<BalloonDriver>>,
    /// Number of further machines that fit, if it was set.
    room: Mutex<Option<usize>>,
    pub(crate) script: Script,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl World {
    pub(crate) fn machine(&self, directory: &Utf8Path) -> Option<Arc<FakeMachine>> {
        lock(&self.machines).get(directory).filter(|machine| machine.alive()).cloned()
    }

    fn version(&self) -> String {
        lock(&self.version).clone().unwrap_or_else(|| env!("CARGO_PKG_VERSION").to_owned())
    }

    fn can_branch(&self) -> bool {
        !self.no_branches.load(Ordering::Relaxed)
    }
}

impl FakeHypervisor {
    /// A host whose VMM saves and loads machines in this manner.
    #[must_use]
    pub fn of(character: Character) -> Self {
        Self { world: Arc::new(World { character, ..World::default() }) }
    }

    /// A connector to the guests of this host.
    #[must_use]
    pub fn connector(&self) -> FakeConnector {
        FakeConnector::new(Arc::clone(&self.world))
    }

    /// Planned faults of machines and guests.
    #[must_use]
    pub fn script(&self) -> &Script {
        &self.world.script
    }

    /// The living machines by VM.
    #[must_use]
    pub fn machines(&self) -> BTreeMap<VmId, Arc<FakeMachine>> {
        let machines = lock(&self.world.machines);
        machines.values().filter(|machine| machine.alive()).map(|m| (m.id.clone(), Arc::clone(m))).collect()
    }

    /// VMs for which a VMM waits.
    #[must_use]
    pub fn prepared(&self) -> Vec<VmId> {
        lock(&self.world.prepared).values().cloned().collect()
    }

    /// Ends the machine of a VM for a reason of the caller's choice; returns whether there was one.
    pub fn end(&self, id: &VmId, exit: MachineExit) -> bool {
        let found = self.machines().remove(id);
        found.as_ref().inspect(|machine| drop(machine.end(exit))).is_some()
    }

    /// Stops the processors of a VM as a VMM does whose write finds no space; returns whether there was a machine.
    pub fn fill_disk(&self, id: &VmId) -> bool {
        self.machines().remove(id).is_some_and(|machine| machine.go(MachineState::DiskFull).is_ok())
    }

    /// Ends the guest channel of a VM as if its agent had stopped, broken the rules …; the machine lives on. Returns
    /// whether there was a machine.
    pub fn close_channel(&self, id: &VmId, reason: CloseReason) -> bool {
        let found = self.machines().remove(id);
        found.as_ref().inspect(|machine| machine.system.close_channel(reason)).is_some()
    }

    /// From now on the VMM is another version: it refuses states of the old one.
    pub fn upgrade(&self, version: &str) {
        *lock(&self.world.version) = Some(version.to_owned());
    }

    /// From now on the host says that so many more machines fit; `None`: it does not know.
    pub fn set_room(&self, machines: Option<usize>) {
        *lock(&self.world.room) = machines;
    }

    /// From now on machines cannot be branched, as with a hypervisor that offers no snapshots.
    pub fn forget_branching(&self) {
        self.world.no_branches.store(true, Ordering::Relaxed);
    }

    /// From now on machines see no folders of the host, as with a hypervisor that cannot share any.
    pub fn forget_sharing(&self) {
        self.world.no_shares.store(true, Ordering::Relaxed);
    }

    /// From now on machines have balloons, for guests with or without a driver.
    pub fn offer_balloons(&self, driver: BalloonDriver) {
        *lock(&self.world.balloon) = Some(driver);
    }

    /// Abilities of this host's VMM.
    #[must_use]
    pub fn abilities(&self) -> Abilities {
        let saves = self.world.can_branch();
        let shares = !self.world.no_shares.load(Ordering::Relaxed);
        let all = self.world.character.abilities();
        Abilities {
            sharing: shares.then_some(Sharing::Plan9),
            save: if saves { all.save } else { SaveKind::None },
            load: if saves { all.load } else { LoadKind::None },
            fork: ForkKinds { state: saves },
            standby: saves && all.standby,
            balloon: lock(&self.world.balloon).is_some(),
            ..all
        }
    }

    fn build(&self, spec: &MachineSpec) -> Result<Arc<FakeMachine>, LaunchError> {
        if spec.vcpus == 0 || spec.memory_mib == 0 {
            return Err(LaunchError::Spec("it needs at least one processor and 1 MiB of memory".to_owned()));
        }
        if spec.cpu_percent.is_some() && !self.abilities().cpu_limit {
            return Err(LaunchError::Spec("this hypervisor cannot limit processor time".to_owned()));
        }
        let boot = match &spec.start {
            MachineStart::Boot(boot) => vec![&boot.kernel, &boot.initramfs],
            MachineStart::Incoming(_) => Vec::new(),
        };
        let maps = self.abilities().load == LoadKind::Memory(MemoryShape::PagesOverBase);
        if maps && spec.memory_base().is_none() {
            return Err(LaunchError::Spec("it has no file for its memory to be mapped over".to_owned()));
        }
        let files = boot.into_iter().map(Utf8PathBuf::as_path).chain(spec.memory_base());
        let disks = spec.disks().map(|disk| disk.path.as_path());
        if let Some(path) = files.chain(disks).find(|path| !path.exists()) {
            return Err(LaunchError::Spec(format!("{path} does not exist")));
        }
        if spec.shares().next().is_some() && self.abilities().sharing.is_none() {
            return Err(LaunchError::Spec("this hypervisor cannot share folders".to_owned()));
        }
        if spec.further_devices() > self.abilities().most_devices {
            let most = self.abilities().most_devices;
            return Err(LaunchError::Spec(format!("it has more than {most} further devices")));
        }
        if let Some(share) = spec.shares().find(|share| !share.source.is_dir()) {
            return Err(LaunchError::Share(format!("{} is not a folder", share.source)));
        }
        let mut machines = lock(&self.world.machines);
        if machines.get(&spec.directory).is_some_and(|machine| machine.alive()) {
            let detail = format!("a machine is running in {}", spec.directory);
            return Err(LaunchError::Process { step: "taking the directory", detail });
        }
        let disk = spec
            .writable_disks()
            .next()
            .map(|(_, disk)| self.world.disks.open(disk))
            .transpose()?
            .unwrap_or_default();
        let (name, version) = (self.world.character.name(), self.world.version());
        let (compatibility, saved) = match &spec.start {
            MachineStart::Boot(boot) => (branch::compatibility(name, &version, boot.discovery), None),
            MachineStart::Incoming(state) if self.world.can_branch() => {
                let compatibility = branch::check(&state.compatibility, name, &version)?;
                let saved = branch::load(self.world.character, state, spec.vcpus, spec.memory_mib)?;
                (compatibility, Some(saved))
            }
            MachineStart::Incoming(_) => {
                return Err(LaunchError::Spec("this hypervisor cannot load states".to_owned()));
            }
        };
        let console = Arc::clone(lock(&self.world.consoles).entry(spec.directory.clone()).or_default());
        let (vcpus, memory_mib) = (spec.vcpus, spec.memory_mib);
        let (system, began) = match saved {
            Some(saved) => (GuestSystem::restored(saved, disk, vcpus, memory_mib), "went on from a state"),
            None => (GuestSystem::new(disk, vcpus, memory_mib), "started"),
        };
        let system = Arc::new(system);
        let mut wants_end = system.wants_end.subscribe();
        let serial = self.world.launched.fetch_add(1, Ordering::Relaxed) + 1;
        let saving =
            Saving { character: self.world.character, compatibility, can_branch: self.world.can_branch() };
        let mut machine = FakeMachine::new(spec, serial, system, console, saving, &self.world);
        machine.balloon = lock(&self.world.balloon).map(|driver| FakeBalloon::new(driver, memory_mib));
        let machine = Arc::new(machine);
        machine.print(&format!("fake kernel: {began}\n"));
        machines.insert(spec.directory.clone(), Arc::clone(&machine));
        let watched = Arc::downgrade(&machine);
        let mut watchers = lock(&self.world.watchers);
        while watchers.try_join_next().is_some() {}
        watchers.spawn(async move {
            let wanted = wants_end.wait_for(Option::is_some).await.ok().and_then(|exit| exit.clone());
            if let (Some(exit), Some(machine)) = (wanted, watched.upgrade()) {
                machine.print(&format!("fake kernel: {exit}\n"));
                machine.end(exit);
            }
        });
        Ok(machine)
    }
}

#[async_trait]
impl Loader for FakeHypervisor {
    async fn compatibility(&self, kernel: &KernelInfo) -> Result<Compatibility, LaunchError> {
        Ok(branch::compatibility(self.world.character.name(), &self.world.version(), kernel.discovery))
    }

    async fn check(&self, needed: &Compatibility) -> Result<(), LaunchError> {
        branch::check(needed, self.world.character.name(), &self.world.version()).map(|_| ())
    }
}

#[async_trait]
impl Standby for FakeHypervisor {
    fn fits(&self, spec: &MachineSpec) -> bool {
        matches!(spec.start, MachineStart::Incoming(_))
    }

    async fn prepare(&self, spec: &MachineSpec) -> Result<(), LaunchError> {
        let verdict = self.world.script.ask(Operation::Prepare).await;
        if verdict == Verdict::Fail {
            return Err(LaunchError::Died { detail: "a fault was planned here".to_owned() });
        }
        if !self.fits(spec) {
            return Err(LaunchError::Spec("it boots: no VMM can wait for it".to_owned()));
        }
        lock(&self.world.prepared).insert(spec.directory.clone(), spec.id.clone());
        verdict.finish().await;
        Ok(())
    }
}

#[async_trait]
impl Hypervisor for FakeHypervisor {
    fn name(&self) -> &'static str {
        self.world.character.name()
    }

    async fn probe(&self) -> Result<Capabilities, LaunchError> {
        let reason = "nothing is really run".to_owned();
        Ok(Capabilities {
            driver: self.world.character.name(),
            version: self.world.version(),
            program: None,
            accelerator: Accelerator { kind: AcceleratorKind::None, reason },
            confinement: BTreeMap::new(),
            copying_ahead: Feature::On(None),
            abilities: self.abilities(),
        })
    }

    fn loader(&self) -> Option<&dyn Loader> {
        self.world.can_branch().then_some(self)
    }

    fn standby(&self) -> Option<&dyn Standby> {
        self.abilities().standby.then_some(self)
    }

    async fn room(&self, _memory_mib: u32, _own_bytes: u64) -> Option<usize> {
        *lock(&self.world.room)
    }

    async fn launch(&self, spec: &MachineSpec) -> Result<Arc<dyn Machine>, LaunchError> {
        let verdict = self.world.script.ask(Operation::Launch).await;
        if verdict == Verdict::Fail {
            return Err(LaunchError::Died { detail: "a fault was planned here".to_owned() });
        }
        let loaded = match &spec.start {
            MachineStart::Boot(_) => Verdict::Go,
            MachineStart::Incoming(_) => self.world.script.ask(Operation::Incoming).await,
        };
        if loaded == Verdict::Fail {
            return Err(LaunchError::BadState("a fault was planned here".to_owned()));
        }
        lock(&self.world.prepared).remove(&spec.directory);
        let machine = self.build(spec)?;
        loaded.finish().await;
        verdict.finish().await;
        Ok(machine)
    }

    async fn adopt(
        &self,
        id: &VmId,
        directory: &Utf8Path,
        record: &MachineRecord,
    ) -> Result<Arc<dyn Machine>, LaunchError> {
        let verdict = self.world.script.ask(Operation::Adopt).await;
        if verdict == Verdict::Fail {
            return Err(LaunchError::Gone("a fault was planned here".to_owned()));
        }
        let found =
            self.world.machine(directory).filter(|machine| machine.id == *id && machine.record() == *record);
        verdict.finish().await;
        match found {
            Some(machine) => Ok(machine),
            None => Err(LaunchError::Gone(format!("no fake machine of VM {id} fits its record"))),
        }
    }

    async fn end_strays(&self, folder: &Utf8Path, known: &HashSet<VmId>) -> Result<Vec<VmId>, LaunchError> {
        let is_stray = |directory: &Utf8Path| {
            let id = directory.file_name().and_then(|name| name.parse::<VmId>().ok())?;
            let stray = directory.parent() == Some(folder) && !directory.exists() && !known.contains(&id);
            stray.then_some(id)
        };
        let mut machines = lock(&self.world.machines);
        let strays: Vec<_> =
            machines.keys().filter_map(|path| is_stray(path).map(|id| (path.clone(), id))).collect();
        for (directory, _) in &strays {
            if let Some(machine) = machines.remove(directory) {
                machine.end(MachineExit::Killed);
            }
        }
        Ok(strays.into_iter().map(|(_, id)| id).collect())
    }

    async fn sweep(
        &self,
        _id: &VmId,
        directory: &Utf8Path,
        _record: Option<&MachineRecord>,
    ) -> Result<(), LaunchError> {
        let verdict = self.world.script.ask(Operation::Sweep).await;
        if verdict == Verdict::Fail {
            let after = std::time::Duration::ZERO;
            return Err(LaunchError::Timeout { step: "ending leftover processes", after });
        }
        lock(&self.world.prepared).remove(directory);
        let found = lock(&self.world.machines).remove(directory);
        if let Some(machine) = found {
            machine.end(MachineExit::Killed);
        }
        verdict.finish().await;
        Ok(())
    }

    async fn console(
        &self,
        directory: &Utf8Path,
        from: Option<u64>,
        limit: usize,
    ) -> std::io::Result<ConsolePart> {
        let found = lock(&self.world.consoles).get(directory).cloned();
        let console = found.map_or_else(Vec::new, |console| lock(&console).to_vec());
        let newest = console.len().saturating_sub(limit);
        let offset =
            from.map_or(newest, |from| usize::try_from(from).unwrap_or(usize::MAX).min(console.len()));
        let bytes = console[offset..console.len().min(offset.saturating_add(limit))].to_vec();
        Ok(ConsolePart { offset: offset as u64, bytes, end: console.len() as u64 })
    }
}
