//! The one place where drivers and core meet.

use std::env;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use camino::Utf8PathBuf;
use microvm_core::{Engine, Hypervisors, Ports, Settings as CoreSettings};
use microvm_driver_database::SqliteStore;
use microvm_driver_disks::{Disks, DisksConfig};
use microvm_driver_guest::{GuestConfig, SocketGuestConnector};
use microvm_driver_host::{HostHooks, SystemClock};
use microvm_driver_images::{AgentSource, Images, ImagesConfig};
use microvm_driver_qemu::{AcceleratorChoice, Qemu, QemuConfig};
use microvm_ports::Clock;

use crate::settings::Settings;
use crate::template_files::TemplateFiles;
use crate::{limits, variables};

/// The guest agent as it was when this program was built; empty in a build that had none at hand.
static EMBEDDED_AGENT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/microvm-agent"));

/// Opens the engine on real drivers: cleans up after a crash and takes up the VMs that are still there.
pub(crate) async fn open_engine(settings: &Settings) -> anyhow::Result<Arc<Engine>> {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let stores = open_stores(settings, Arc::clone(&clock)).await?;
    let database = settings.root.join("state.sqlite");
    let store = SqliteStore::open(&database).await.with_context(|| format!("opening {database}"))?;
    let (images, disks) = (Arc::new(stores.images), Arc::new(stores.disks));
    let ports = Ports {
        hypervisors: Hypervisors::new(Arc::new(Qemu::new(qemu_config()?)), Vec::new())
            .with_unnamed(microvm_driver_qemu::NAME),
        connector: Arc::new(connector()),
        store: Arc::new(store),
        images: Arc::clone(&images) as _,
        kernels: images,
        vm_storage: Arc::clone(&disks) as _,
        volumes: Arc::clone(&disks) as _,
        snapshots: disks,
        hooks: Arc::new(HostHooks),
        clock,
    };
    let usual = CoreSettings::default();
    let settings = CoreSettings {
        limits: limits::host_limits()?,
        template_source: Some(Arc::new(TemplateFiles::new(&settings.root))),
        waiting_vmms: waiting_vmms(usual.waiting_vmms)?,
        prove_snapshots: prove_snapshots()?,
        disk_reserve: disk_reserve(usual.disk_reserve)?,
        snapshots_per_vm: snapshots_per_vm(usual.snapshots_per_vm)?,
        unnamed_snapshot_age: snapshot_age(usual.unnamed_snapshot_age)?,
        ..usual
    };
    Ok(Engine::open(ports, settings).await?)
}

/// Most VMMs that may wait for the children of one VM.
const MOST_WAITING_VMMS: usize = 16;

fn waiting_vmms(usual: usize) -> anyhow::Result<usize> {
    let Some(text) = variables::read("MICROVM_WAITING_VMMS")? else { return Ok(usual) };
    match text.parse() {
        Ok(number) if number <= MOST_WAITING_VMMS => Ok(number),
        _ => anyhow::bail!(
            "MICROVM_WAITING_VMMS is `{text}`: it must be a number from 0 to {MOST_WAITING_VMMS}"
        ),
    }
}

/// True if every snapshot that a user takes is proved by a VM that comes up from it.
fn prove_snapshots() -> anyhow::Result<bool> {
    match variables::filled("MICROVM_PROVE_SNAPSHOTS")?.as_deref() {
        None | Some("on") => Ok(true),
        Some("off") => Ok(false),
        Some(other) => anyhow::bail!("MICROVM_PROVE_SNAPSHOTS is `{other}`: it must be on or off"),
    }
}

/// Most snapshots of one VM without a name of their own.
fn snapshots_per_vm(usual: usize) -> anyhow::Result<usize> {
    let Some(text) = variables::read("MICROVM_SNAPSHOTS_PER_VM")? else { return Ok(usual) };
    match text.parse() {
        Ok(number) if number > 0 => Ok(number),
        _ => anyhow::bail!("MICROVM_SNAPSHOTS_PER_VM is `{text}`: it must be a number, 1 or more"),
    }
}

/// Age at which snapshots without a name of their own go.
fn snapshot_age(usual: Option<Duration>) -> anyhow::Result<Option<Duration>> {
    let Some(text) = variables::read("MICROVM_SNAPSHOT_AGE")? else { return Ok(usual) };
    if text == "0" {
        return Ok(None);
    }
    let age = crate::duration::parse(&text);
    age.map(Some).map_err(|error| {
        anyhow::anyhow!(
            "MICROVM_SNAPSHOT_AGE is `{text}` ({error}): it must be an age such as 30d, or 0 for none"
        )
    })
}

/// Free space that VMs which grow must leave.
fn disk_reserve(usual: u64) -> anyhow::Result<u64> {
    let Some(text) = variables::read("MICROVM_DISK_RESERVE")? else { return Ok(usual) };
    let size: microvm_types::ByteSize = text.parse().map_err(|error| {
        anyhow::anyhow!("MICROVM_DISK_RESERVE is `{text}` ({error}): it must be a size such as 256MiB, or 0")
    })?;
    Ok(size.0)
}

/// Bytes on the disk that all VMs and what is kept of them may take together.
fn disk_limit() -> anyhow::Result<Option<u64>> {
    let Some(text) = variables::read("MICROVM_DISK_LIMIT")? else { return Ok(None) };
    let size: microvm_types::ByteSize = text.parse().map_err(|error| {
        anyhow::anyhow!(
            "MICROVM_DISK_LIMIT is `{text}` ({error}): it must be a size such as 200GiB, or 0 for none"
        )
    })?;
    Ok(Some(size.0).filter(|size| *size > 0))
}

/// The stores of one root.
pub(crate) struct Stores {
    pub(crate) images: Images,
    pub(crate) disks: Disks,
}

/// Opens the stores; several processes may have them open.
pub(crate) async fn open_stores(settings: &Settings, clock: Arc<dyn Clock>) -> anyhow::Result<Stores> {
    // The bench opens stores too, and nothing of somebody else's may be touched by it.
    if let Err(error) = crate::root::claim(&settings.root).await {
        anyhow::bail!(error.detail());
    }
    let images = ImagesConfig::new(settings.root.clone(), agent()?);
    let disks = DisksConfig { disk_limit: disk_limit()?, ..DisksConfig::new(settings.root.clone()) };
    Ok(tokio::task::spawn_blocking(move || {
        let images = Images::open(images, Arc::clone(&clock))?;
        Disks::open(disks, clock).map(|disks| Stores { images, disks })
    })
    .await??)
}

/// The driver of guest channels.
pub(crate) fn connector() -> SocketGuestConnector {
    SocketGuestConnector::new(GuestConfig::default())
}

/// Settings of the hypervisor from the environment.
pub(crate) fn qemu_config() -> anyhow::Result<QemuConfig> {
    let launcher = Utf8PathBuf::try_from(env::current_exe().context("finding this program")?)?;
    let mut config = QemuConfig::new(launcher);
    if let Some(program) = variables::read("MICROVM_QEMU")? {
        config.program = program.into();
    }
    config.write_tracking = match variables::filled("MICROVM_WRITE_TRACKING")?.as_deref() {
        None | Some("on") => true,
        Some("off") => false,
        Some(other) => anyhow::bail!("MICROVM_WRITE_TRACKING is `{other}`: it must be on or off"),
    };
    config.accelerator = match variables::filled("MICROVM_ACCELERATOR")?.as_deref() {
        None | Some("auto") => AcceleratorChoice::Auto,
        Some("kvm") => AcceleratorChoice::Kvm,
        Some("tcg") => AcceleratorChoice::Tcg,
        Some(other) => anyhow::bail!("MICROVM_ACCELERATOR is `{other}`: it must be auto, kvm or tcg"),
    };
    Ok(config)
}

/// The agent: named by `MICROVM_AGENT`, else the embedded one, else a file beside this program.
fn agent() -> anyhow::Result<AgentSource> {
    if let Some(path) = variables::read("MICROVM_AGENT")? {
        return Ok(AgentSource::Path(path.into()));
    }
    if !EMBEDDED_AGENT.is_empty() {
        return Ok(AgentSource::Bytes(EMBEDDED_AGENT.into()));
    }
    let program = env::current_exe().context("finding this program")?;
    let beside = program.with_file_name("microvm-agent");
    anyhow::ensure!(
        beside.exists(),
        "the guest agent is missing: this build has none inside and {} does not exist; \
         `cargo xtask quickstart` builds both, or set MICROVM_AGENT to its path",
        beside.display()
    );
    Ok(AgentSource::Path(Utf8PathBuf::try_from(beside)?))
}
