//! The driver as core sees it.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use camino::Utf8Path;
use microvm_confinement::ProcessRecord;
use microvm_ports::branch::Compatibility;
use microvm_ports::hypervisor::{
    Abilities, Capabilities, ConsolePart, Loader, Machine, MachineRecord, MachineSpec, MachineStart, Standby,
};
use microvm_ports::storage::KernelInfo;
use microvm_ports::{Hypervisor, LaunchError};
use microvm_types::VmId;
use tokio::sync::OnceCell;

use crate::branch::Saving;
use crate::config::QemuConfig;
use crate::machine::QemuMachine;
use crate::machine::record::Record;
use crate::machine::standby::{Waiting, WaitingRoom};
use crate::memory::host_memory;
use crate::probe::compatibility;
use crate::probe::{self, Host};
use crate::process;
use crate::process::command_line::{self, CommandLine, Surroundings};
use crate::process::console;
use crate::process::users::{UserLease, Users};
use crate::recipe::Recipe;

/// Time that a process has to end after SIGKILL; a host in trouble takes seconds.
const SWEEP_DEADLINE: Duration = Duration::from_secs(10);

/// QEMU machines on this host.
pub struct Qemu {
    config: QemuConfig,
    host: OnceCell<Host>,
    users: Arc<Users>,
    waiting: WaitingRoom,
}

impl Qemu {
    /// A driver with these settings. Nothing is looked at before the first use.
    #[must_use]
    pub fn new(config: QemuConfig) -> Self {
        Self { config, host: OnceCell::new(), users: Arc::default(), waiting: WaitingRoom::default() }
    }

    /// The command line of a machine of `spec`, which is not started.
    ///
    /// # Errors
    /// As [`Hypervisor::launch`] for what the host lacks.
    pub async fn recipe(&self, spec: &MachineSpec) -> Result<Recipe, LaunchError> {
        let host = self.host().await?;
        Ok(Recipe::of(host.program.clone(), line(host, spec, Surroundings::Caged)?))
    }

    /// Abilities of this driver on a host that lacks nothing.
    #[must_use]
    pub const fn abilities() -> Abilities {
        probe::ABILITIES
    }

    async fn host(&self) -> Result<&Host, LaunchError> {
        self.host.get_or_try_init(|| probe::probe(&self.config)).await
    }

    /// Checks that the machine can be made here.
    async fn plan(&self, spec: &MachineSpec) -> Result<(&Host, Saving), LaunchError> {
        if spec.vcpus == 0 || spec.memory_mib == 0 {
            let detail = format!("{} processors and {} MiB of memory", spec.vcpus, spec.memory_mib);
            return Err(LaunchError::Spec(detail));
        }
        let host = self.host().await?;
        if spec.cpu_percent.is_some() && !host.capabilities.abilities.cpu_limit {
            let detail = "this host cannot limit its processor time";
            return Err(LaunchError::Spec(detail.to_owned()));
        }
        let here = match &spec.start {
            MachineStart::Boot(_) => compatibility::of(host, command_line::discovery(spec)?),
            MachineStart::Incoming(state) => compatibility::met(host, &state.compatibility)?,
        };
        Ok((host, Saving::of(spec, here)?))
    }

    /// Launches a machine into the VMM that waits for it, if there is one. What is left when it fails is the caller's to
    /// sweep.
    async fn launch_by(
        &self,
        spec: &MachineSpec,
        waiting: Option<Waiting>,
    ) -> Result<QemuMachine, LaunchError> {
        check_memory(spec)?;
        let (host, saving) = self.plan(spec).await?;
        if let Some(waiting) = waiting {
            let shape = line(host, spec, Surroundings::Waiting)?;
            match waiting.load(&shape, spec, &saving).await {
                Ok(machine) => return Ok(machine),
                Err(error) => {
                    tracing::info!(vm = %spec.id, %error, "the VMM that waited for it is of no use, another one is started");
                    self.sweep(&spec.id, &spec.directory, None).await?;
                }
            }
        }
        let machine = self.start(host, spec, line(host, spec, Surroundings::Caged)?, saving).await?;
        if let MachineStart::Incoming(state) = &spec.start {
            machine.load(state, std::future::ready(Ok(()))).await?;
        }
        Ok(machine)
    }

    /// Starts a caged QEMU and connects to it. What it leaves when it fails is the caller's to sweep.
    async fn start(
        &self,
        host: &Host,
        spec: &MachineSpec,
        line: CommandLine,
        saving: Saving,
    ) -> Result<QemuMachine, LaunchError> {
        let user = self.users.take().map_err(|error| LaunchError::Process {
            step: "choosing its user id",
            detail: error.to_string(),
        })?;
        let user = UserLease { users: Arc::clone(&self.users), user };
        // A standby VMM has no disks yet; it gets them as open descriptors.
        if line.surroundings == Surroundings::Caged {
            process::give_files(spec, user.user)?;
        }
        let process = process::start(&self.config, host, spec, line, user.user).await?;
        let version = host.version.clone();
        QemuMachine::attach(&self.config, &spec.directory, process, version, user, Some(saving)).await
    }

    /// Connects to a machine that an earlier server started, if it lives.
    async fn adopt_by(
        &self,
        directory: &Utf8Path,
        record: &MachineRecord,
    ) -> Result<QemuMachine, LaunchError> {
        let Record { process, version, user, saving, .. } = Record::read(record)?;
        // Only what is known to be gone is: a machine that cannot be looked at now is adopted later.
        let unknown = |error: std::io::Error| LaunchError::Process {
            step: "looking for its process",
            detail: error.to_string(),
        };
        let lives = process.vmm_lives().map_err(unknown)?;
        if lives && process.belongs_elsewhere(directory).map_err(unknown)? {
            return Err(LaunchError::Gone(
                "it works for another root directory, which this one is a copy of".to_owned(),
            ));
        }
        if !lives {
            let LaunchError::Died { detail } = process::died(directory) else {
                return Err(LaunchError::Gone("its process is gone".to_owned()));
            };
            return Err(LaunchError::Gone(detail));
        }
        if let Some(user) = user {
            self.users.keep(user);
        }
        let user = UserLease { users: Arc::clone(&self.users), user };
        QemuMachine::attach(&self.config, directory, process, version, user, saving).await
    }
}

impl std::fmt::Debug for Qemu {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Qemu").field("config", &self.config).finish_non_exhaustive()
    }
}

#[async_trait]
impl Hypervisor for Qemu {
    fn name(&self) -> &'static str {
        probe::NAME
    }

    async fn probe(&self) -> Result<Capabilities, LaunchError> {
        Ok(self.host().await?.capabilities.clone())
    }

    fn loader(&self) -> Option<&dyn Loader> {
        Some(self)
    }

    fn standby(&self) -> Option<&dyn Standby> {
        probe::standby_is_safe().then_some(self)
    }

    async fn room(&self, memory_mib: u32, own_bytes: u64) -> Option<usize> {
        let room = host_memory::available_mib().ok()? / soon_needed_mib(memory_mib, Some(own_bytes));
        usize::try_from(room).ok()
    }

    async fn launch(&self, spec: &MachineSpec) -> Result<Arc<dyn Machine>, LaunchError> {
        match self.launch_by(spec, self.waiting.take(&spec.id)).await {
            Ok(machine) => Ok(Arc::new(machine)),
            Err(error) => {
                self.sweep(&spec.id, &spec.directory, None).await?;
                Err(error)
            }
        }
    }

    async fn adopt(
        &self,
        _id: &VmId,
        directory: &Utf8Path,
        record: &MachineRecord,
    ) -> Result<Arc<dyn Machine>, LaunchError> {
        match self.adopt_by(directory, record).await {
            Ok(machine) => Ok(Arc::new(machine)),
            Err(error) => {
                // It may live: its user id goes to no other machine.
                let may_live = !matches!(error, LaunchError::Gone(_) | LaunchError::Died { .. });
                if let Some(user) = Record::user_of(record).filter(|_| may_live) {
                    self.users.keep(user);
                }
                Err(error)
            }
        }
    }

    async fn end_strays(
        &self,
        folder: &Utf8Path,
        known: &std::collections::HashSet<VmId>,
    ) -> Result<Vec<VmId>, LaunchError> {
        let is_known = |name: &str| name.parse().is_ok_and(|id: VmId| known.contains(&id));
        let ended = microvm_confinement::end_strays(folder, is_known, SWEEP_DEADLINE).await;
        let ended = ended.map_err(|error| not_ended("ending a process that nothing tells of", &error))?;
        Ok(ended.iter().filter_map(|name| name.parse().ok()).collect())
    }

    async fn sweep(
        &self,
        id: &VmId,
        directory: &Utf8Path,
        record: Option<&MachineRecord>,
    ) -> Result<(), LaunchError> {
        // Its user id is free again when its process has ended.
        let _waiting = self.waiting.take(id);
        // What cannot be read is found by what the directory shows.
        let known = record.and_then(|record| Record::read(record).ok()).map(|record| record.process);
        let ended = ProcessRecord::end_all(directory, id.as_str(), known.as_ref(), SWEEP_DEADLINE).await;
        ended.map_err(|error| not_ended("ending its process", &error))
    }

    async fn console(
        &self,
        directory: &Utf8Path,
        from: Option<u64>,
        limit: usize,
    ) -> std::io::Result<ConsolePart> {
        console::read(directory, from, limit).await
    }
}

#[async_trait]
impl Loader for Qemu {
    async fn compatibility(&self, kernel: &KernelInfo) -> Result<Compatibility, LaunchError> {
        Ok(compatibility::of(self.host().await?, kernel.discovery))
    }

    async fn check(&self, needed: &Compatibility) -> Result<(), LaunchError> {
        compatibility::met(self.host().await?, needed).map(|_| ())
    }
}

#[async_trait]
impl Standby for Qemu {
    /// A cold boot takes seconds, and a folder is mounted when the VMM starts.
    fn fits(&self, spec: &MachineSpec) -> bool {
        matches!(spec.start, MachineStart::Incoming(_)) && spec.shares().next().is_none()
    }

    async fn prepare(&self, spec: &MachineSpec) -> Result<(), LaunchError> {
        if !self.fits(spec) {
            return Err(LaunchError::Spec("it boots or shares folders: no VMM can wait for it".to_owned()));
        }
        let (host, saving) = self.plan(spec).await?;
        let shape = line(host, spec, Surroundings::Waiting)?;
        match self.start(host, spec, line(host, spec, Surroundings::Waiting)?, saving).await {
            Ok(machine) => {
                self.waiting.add(&spec.id, Waiting::new(machine, shape));
                Ok(())
            }
            Err(error) => {
                self.sweep(&spec.id, &spec.directory, None).await?;
                Err(error)
            }
        }
    }
}

fn line(host: &Host, spec: &MachineSpec, surroundings: Surroundings) -> Result<CommandLine, LaunchError> {
    command_line::build(spec, host.accelerator.kind, host.tsc_khz, surroundings)
}

/// MiB that a machine needs at once beyond its pages: QEMU's own 64 MiB at most (measured 30 to 40 for an idle child).
const VMM_MIB: u64 = 64;

/// MiB that a machine will need soon. Memory is taken as it is used, so this is a guess in the VM's favour: a quarter of
/// it after a boot, as guests rarely touch more at once; what a saved state brings is known: its pages, and an eighth for
/// what it will change.
const fn soon_needed_mib(memory_mib: u32, own_pages: Option<u64>) -> u64 {
    VMM_MIB
        + match own_pages {
            None => memory_mib as u64 / 4,
            Some(bytes) => (bytes >> 20) + memory_mib as u64 / 8,
        }
}

/// Refuses what the host cannot back right now, before anything is started.
fn check_memory(spec: &MachineSpec) -> Result<(), LaunchError> {
    let own_pages = match &spec.start {
        MachineStart::Boot(_) => None,
        MachineStart::Incoming(state) => Some(state.memory.page_bytes()),
    };
    let needed_mib = soon_needed_mib(spec.memory_mib, own_pages);
    let available_mib = host_memory::available_mib().map_err(|error| LaunchError::Process {
        step: "reading how much memory the host has",
        detail: error.to_string(),
    })?;
    if needed_mib > available_mib { Err(LaunchError::NoMemory { needed_mib, available_mib }) } else { Ok(()) }
}

fn not_ended(step: &'static str, error: &std::io::Error) -> LaunchError {
    if error.kind() == std::io::ErrorKind::TimedOut {
        LaunchError::Timeout { step, after: SWEEP_DEADLINE }
    } else {
        LaunchError::Process { step, detail: error.to_string() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_user_id_of_a_machine_that_cannot_be_adopted_stays_taken() {
        let qemu = Qemu::new(QemuConfig::new("microvm".into()));
        let (id, directory) = (VmId::from_parts(1, 1), Utf8Path::new("/nowhere"));
        let data =
            |user: u32| serde_json::json!({ "format": 2, "process": "of a newer program", "user": user });
        let record = MachineRecord { driver: probe::NAME.to_owned(), data: data(7) };
        let outcome = qemu.adopt(&id, directory, &record).await;
        assert!(matches!(outcome, Err(LaunchError::Process { .. })), "it may live");
        assert!(qemu.users.has(7));
        let other = MachineRecord { driver: "other".to_owned(), data: data(8) };
        assert!(matches!(qemu.adopt(&id, directory, &other).await, Err(LaunchError::Gone(_))));
        assert!(!qemu.users.has(8), "of a machine that is gone nothing is taken");
    }
}
