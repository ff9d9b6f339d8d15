//! Bringing a machine up: every step is undone if a later one fails or the whole is dropped.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use camino::{Utf8Path, Utf8PathBuf};
use microvm_ports::branch::IncomingState;
use microvm_ports::guest::Identity;
use microvm_ports::hypervisor::{
    KernelBoot, MachineDisk, MachineExit, MachineSpec, MachineStart, MachineState,
};
use microvm_ports::snapshot::BranchSource;
use microvm_ports::storage::{DiskFormat, ImageConfig, ResolvedImage, VmFiles};
use microvm_ports::{Guest, GuestError, Machine, StorageError};
use microvm_types::template::{InitMode, Template};
use microvm_types::vm::{Origin, VmRecord};
use microvm_types::{ErrorKind, Phase};
use tokio::sync::watch;

pub(crate) mod shares;

use crate::error::ServiceError;
use crate::ports::Ports;

/// Bytes of console shown with a failed boot.
const CONSOLE_TAIL: usize = 2_000;

/// Epochs that a guest may have seen at most without the record's telling of them.
pub(crate) const MOST_LOST_EPOCHS: u32 = 16;

/// A machine that runs and whose agent has confirmed its identity.
pub(crate) struct BroughtUp {
    pub(crate) machine: Arc<dyn Machine>,
    pub(crate) guest: Arc<dyn Guest>,
    pub(crate) image_digest: String,
    /// The epoch it has confirmed.
    pub(crate) epoch: u64,
}

/// Ends the machine when dropped before [`LaunchGuard::keep`]: a failed or overtaken start leaves no process.
struct LaunchGuard {
    machine: Option<Arc<dyn Machine>>,
    deadline: Duration,
}

impl LaunchGuard {
    fn keep(mut self) -> Option<Arc<dyn Machine>> {
        self.machine.take()
    }
}

impl Drop for LaunchGuard {
    fn drop(&mut self) {
        if let Some(machine) = self.machine.take() {
            let deadline = self.deadline;
            tokio::spawn(async move { machine.kill(deadline).await });
        }
    }
}

/// Brings the machine of `record` up, by a cold boot or from a state, and pushes its identity.
///
/// # Errors
/// Whatever step failed; the machine is being ended then. Call [`microvm_ports::Hypervisor::sweep`] to wait for it.
pub(crate) async fn bring_up(
    ports: &Ports,
    record: &VmRecord,
    source: Option<BranchSource>,
    kill_deadline: Duration,
) -> Result<BroughtUp, ServiceError> {
    let template = &record.template;
    let reference = if record.image_digest.is_empty() { &template.image } else { &record.image_digest };
    let (image, files) =
        tokio::try_join!(ports.images.image(reference), ports.vm_storage.vm_files(&record.id))?;
    let (memory_base, start) = match &source {
        Some(source) => (source.memory_base.clone(), incoming(source)),
        None => tokio::try_join!(ports.vm_storage.zero_memory(template.memory_mib), boot(ports, template))?,
    };
    let spec = machine_spec(ports, record, &image, files, memory_base, start).await?;
    let began = tokio::time::Instant::now();
    let how = if source.is_some() { "state" } else { "boot" };
    let machine = ports.hypervisor.launch(&spec).await?;
    let guard = LaunchGuard { machine: Some(Arc::clone(&machine)), deadline: kill_deadline };
    // Run at every boot, and in a new child of a golden snapshot, which was booted without them. Everything else goes on
    // from a state in which they have been run: forks, restored VMs, and a VM that is put back on its own snapshot.
    let new_from_golden = matches!(record.origin, Origin::Golden { .. }) && record.phase() == Phase::Creating;
    let start_commands =
        if source.is_none() || new_from_golden { template.start_commands.clone() } else { Vec::new() };
    let mut identity = identity(ports, record, &image.info.config, start_commands);
    if source.is_none() {
        identity.shares = shares::for_guest(&template.shares);
    }
    let deadline = Duration::from_millis(template.boot_timeout_ms);
    // A saved memory may know of epochs whose numbers a server did not live to store.
    let unknown = if source.is_some() { u64::from(MOST_LOST_EPOCHS) } else { 0 };
    let epoch = record.epoch + unknown + 1;
    let endpoint = machine.endpoint();
    let connect = ports.connector.connect(&endpoint, epoch, &identity, deadline);
    let up = async {
        let (resumed, guest) = tokio::join!(machine.resume(), connect);
        resumed?;
        Ok::<_, ServiceError>(guest?)
    };
    let failure = tokio::select! {
        biased;
        exit = exited(machine.state()) => boot_error(ports, &spec.directory, ErrorKind::Internal, exit.to_string()).await,
        guest = up => match guest {
            Ok(guest) => {
                if let Some(machine) = guard.keep() {
                    metrics::histogram!("microvm_vm_start_duration_seconds", "from" => how).record(began.elapsed());
                    return Ok(BroughtUp { machine, guest, image_digest: image.info.digest, epoch });
                }
                ServiceError::ShuttingDown
            }
            // A guest that dies closes its channel a moment before its machine is seen to have ended.
            Err(ServiceError::Guest(error @ (GuestError::Closed(_) | GuestError::Unreachable(_)))) => {
                let exit = tokio::time::timeout(Duration::from_secs(2), exited(machine.state())).await;
                let why = exit.map_or_else(|_| error.to_string(), |exit| exit.to_string());
                boot_error(ports, &spec.directory, ErrorKind::Internal, why).await
            }
            Err(ServiceError::Guest(error)) => boot_error(ports, &spec.directory, error.kind(), error.to_string()).await,
            Err(error) => error,
        },
    };
    Err(failure)
}

/// The machine of `record`, in the directory of `files`.
pub(crate) async fn machine_spec(
    ports: &Ports,
    record: &VmRecord,
    image: &ResolvedImage,
    files: VmFiles,
    memory_base: Utf8PathBuf,
    start: MachineStart,
) -> Result<MachineSpec, ServiceError> {
    let template = &record.template;
    let is_child = matches!(record.origin, Origin::Fork { .. } | Origin::Snapshot { .. });
    Ok(MachineSpec {
        id: record.id.clone(),
        name: record.name.clone(),
        vcpus: template.vcpus,
        memory_mib: template.memory_mib,
        memory_base,
        start,
        disks: disks(ports, template, image, &files, is_child).await?,
        shares: shares::for_machine(ports, &template.shares).await?,
        directory: files.directory,
    })
}

/// A cold boot of the template's kernel.
async fn boot(ports: &Ports, template: &Template) -> Result<MachineStart, StorageError> {
    let kernel = ports.kernels.kernel(&template.kernel).await?;
    let mut arguments = template.kernel_arguments.clone();
    if let InitMode::Image(program) = &template.init {
        arguments.push(format!("microvm.init={program}"));
    }
    Ok(MachineStart::Boot(KernelBoot {
        kernel: kernel.path,
        initramfs: kernel.initramfs,
        discovery: kernel.info.discovery,
        arguments,
    }))
}

fn incoming(source: &BranchSource) -> MachineStart {
    MachineStart::Incoming(IncomingState {
        device_state: source.device_state.clone(),
        pages: source.pages.clone(),
        discovery: source.description.discovery,
        compatibility: source.description.compatibility.clone(),
    })
}

/// Image, scratch disk, and the template's further disks.
async fn disks(
    ports: &Ports,
    template: &Template,
    image: &ResolvedImage,
    files: &VmFiles,
    is_child: bool,
) -> Result<Vec<MachineDisk>, StorageError> {
    let mut disks = vec![
        MachineDisk {
            path: image.path.clone(),
            format: DiskFormat::Raw,
            backing: Vec::new(),
            read_only: true,
            serial: "image".to_owned(),
        },
        files.scratch.clone(),
    ];
    for disk in &template.extra_disks {
        // Its own copy, or what a branch put over the user's file.
        if let Some(own) = files.own.iter().find(|own| own.serial == disk.name.as_str()) {
            disks.push(own.clone());
            continue;
        }
        if is_child && !disk.read_only {
            return Err(StorageError::Damaged {
                what: format!("the VM's copy of the disk `{}`", disk.name),
                detail: "it is missing, and the original belongs to another VM".to_owned(),
            });
        }
        let path = Utf8PathBuf::from(&disk.path);
        let format = ports.vm_storage.inspect_disk(&path, disk.format).await?;
        disks.push(MachineDisk {
            path,
            format,
            backing: Vec::new(),
            read_only: disk.read_only,
            serial: disk.name.to_string(),
        });
    }
    Ok(disks)
}

/// Fixes the formats of a VM's own disks that are not known yet: those of a template, and of records that were written
/// before formats were kept. Nothing asks the file again afterwards, because the guest can write what it begins with.
///
/// # Errors
/// A file that is not there or cannot be a disk.
pub(crate) async fn fix_formats(ports: &Ports, record: &mut VmRecord) -> Result<(), StorageError> {
    if record.template.extra_disks.iter().all(|disk| disk.format.is_some()) {
        return Ok(());
    }
    let own = ports.vm_storage.vm_files(&record.id).await?.own;
    for disk in record.template.extra_disks.iter_mut().filter(|disk| disk.format.is_none()) {
        // Only raw disks have ever been branched.
        let branched = own.iter().any(|own| own.serial == disk.name.as_str());
        let format = if branched {
            DiskFormat::Raw
        } else {
            ports.vm_storage.inspect_disk(Utf8Path::new(&disk.path), None).await?
        };
        disk.format = Some(format);
    }
    Ok(())
}

/// What the guest is told about itself. `start_commands` only after a boot; whoever boots adds the shares.
pub(crate) fn identity(
    ports: &Ports,
    record: &VmRecord,
    config: &ImageConfig,
    start_commands: Vec<String>,
) -> Identity {
    let mut entropy = [0; 32];
    ports.clock.fill_random(&mut entropy);
    let environment = environment(&config.environment, &record.template.environment);
    Identity {
        host_name: record.name.to_host_name(),
        machine_id: format!("{:032x}", record.id.as_u128()),
        entropy,
        environment: environment.into_iter().collect(),
        start_commands,
        shares: Vec::new(),
        user: config.user.clone(),
        working_directory: config.working_directory.clone(),
    }
}

/// Waits until the processors of a machine stand still because the disk is full.
pub(crate) async fn disk_full(mut state: watch::Receiver<MachineState>) {
    if state.wait_for(|state| *state == MachineState::DiskFull).await.is_err() {
        // Nobody watches it any more: its end is told in another way.
        std::future::pending::<()>().await;
    }
}

/// Waits until a machine has ended.
pub(crate) async fn exited(mut state: watch::Receiver<MachineState>) -> MachineExit {
    loop {
        if let MachineState::Exited(exit) = &*state.borrow_and_update() {
            return exit.clone();
        }
        if state.changed().await.is_err() {
            return MachineExit::Vmm("its driver stopped watching it".to_owned());
        }
    }
}

async fn boot_error(ports: &Ports, directory: &Utf8Path, kind: ErrorKind, reason: String) -> ServiceError {
    let console = match ports.hypervisor.console(directory, None, CONSOLE_TAIL).await {
        Ok(console) => clean(&console.bytes),
        Err(error) => format!("(the console cannot be read: {error})"),
    };
    ServiceError::Boot { kind, reason, console }
}

/// Console bytes as text a terminal can show safely.
fn clean(console: &[u8]) -> String {
    let text: String = String::from_utf8_lossy(console)
        .chars()
        .filter(|c| *c == '\n' || *c == '\t' || !c.is_control())
        .collect();
    text.trim().to_owned()
}

/// Variables of every command. What nobody has said comes first, then the image's, then the template's with what the request
/// put into it. The agent adds a PATH where there is none.
fn environment(
    image: &BTreeMap<String, String>,
    template: &BTreeMap<String, String>,
) -> BTreeMap<String, String> {
    let mut environment = BTreeMap::from([("LANG".to_owned(), "C.UTF-8".to_owned())]);
    environment.extend(image.clone());
    environment.extend(template.clone());
    environment
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_image_wins_over_what_nobody_said_and_the_template_over_the_image() {
        let map = |pairs: &[(&str, &str)]| -> BTreeMap<String, String> {
            pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
        };
        let none = BTreeMap::new();
        let image = map(&[("PATH", "/opt/x/bin:/bin"), ("LANG", "de_DE.UTF-8"), ("A", "image")]);
        assert_eq!(environment(&image, &none), image);
        assert_eq!(environment(&none, &none), map(&[("LANG", "C.UTF-8")]));
        assert_eq!(environment(&image, &map(&[("A", "template")]))["A"], "template");
    }

    #[test]
    fn a_console_cannot_play_with_the_terminal() {
        assert_eq!(clean(b"\x1b[2Jhello\r\n\x07world\n"), "[2Jhello\nworld");
    }
}
