//! Bringing a machine up in stages, each a type whose drop undoes what it did.
//!
//! ```text
//!  Planned ──files──▶ Prepared ──launch──▶ Launched ──resume, connect──▶ Connected ──keep──▶ (machine, guest)
//!  image, start       spec, identity       drop: the machine is killed   drop: the same, and its channel is closed
//! ```
//!
//! Files and row of a new VM are undone by its actor: after a crash at any point they must go in an order (machine, files,
//! row), which no drop can promise.

use std::sync::Arc;
use std::time::Duration;

use camino::Utf8PathBuf;
use microvm_ports::capabilities::MemoryShape;
use microvm_ports::guest::Identity;
use microvm_ports::hypervisor::MachineSpec;
use microvm_ports::snapshot::BranchSource;
use microvm_ports::storage::{ImageConfig, ResolvedImage, ResolvedKernel, VmFiles};
use microvm_ports::{Guest, GuestError, Hypervisor, Machine, StorageError};
use microvm_types::ErrorKind;
use microvm_types::template::Template;
use microvm_types::vm::VmRecord;

use super::failure::boot_error;
use super::identity::first_identity;
use super::spec::{machine_spec, machine_start};
use super::{MOST_LOST_EPOCHS, exited};
use crate::error::ServiceError;
use crate::ports::Ports;
use crate::undo::{self, Undo};

/// Longest time in which a machine is seen to have ended after its guest has closed the channel.
const EXIT_AFTER_CLOSE: Duration = Duration::from_secs(2);

/// Beginning of a machine.
#[derive(Clone)]
pub(crate) enum Start {
    /// By a kernel.
    Boot(ResolvedKernel),
    /// Where another one was.
    State(Box<BranchSource>),
}

/// Parts of a machine: found and verified once, and carried to where they are used.
#[derive(Clone)]
pub(crate) struct Planned {
    pub(crate) image: ResolvedImage,
    pub(crate) start: Start,
}

/// What an image is looked up by. Records of the first servers do not say which one it was.
pub(crate) fn image_reference<'a>(digest: &'a str, template: &'a Template) -> &'a str {
    if digest.is_empty() { &template.image } else { digest }
}

/// What a machine has on the disk of the host.
pub(crate) struct MachineFiles {
    files: VmFiles,
    /// File of zeros that the memory of a boot lies over; `None` if it needs none.
    zero_memory: Option<Utf8PathBuf>,
}

impl Planned {
    /// Of a VM that was made earlier: a boot, or on from `source`.
    pub(crate) async fn of(
        ports: &Ports,
        record: &VmRecord,
        source: Option<BranchSource>,
    ) -> Result<Self, StorageError> {
        let image = ports.images.image(image_reference(&record.image_digest, &record.template));
        match source {
            Some(source) => Ok(Self { image: image.await?, start: Start::State(Box::new(source)) }),
            None => {
                let (image, kernel) = tokio::try_join!(image, ports.kernels.kernel(&record.template.kernel))?;
                Ok(Self { image, start: Start::Boot(kernel) })
            }
        }
    }

    /// Makes the files of a new VM.
    pub(crate) async fn make_files(
        &self,
        ports: &Ports,
        record: &VmRecord,
    ) -> Result<MachineFiles, ServiceError> {
        let files = async {
            let made = match &self.start {
                Start::Boot(_) => {
                    ports.vm_storage.create_vm_files(&record.id, record.template.disk_mib).await
                }
                Start::State(source) => ports.snapshots.create_vm_files_from(&record.id, source).await,
            };
            made.map_err(ServiceError::from)
        };
        // Independent of each other, and both wait for the disk of the host.
        let (files, zero_memory) = tokio::try_join!(files, self.zero_memory(ports, record))?;
        Ok(MachineFiles { files, zero_memory })
    }

    /// Finds the files of a VM that was made earlier, unless they were just put back.
    pub(crate) async fn find_files(
        &self,
        ports: &Ports,
        record: &VmRecord,
        put_back: Option<VmFiles>,
    ) -> Result<MachineFiles, ServiceError> {
        let files = async {
            match put_back {
                Some(files) => Ok(files),
                None => ports.vm_storage.vm_files(&record.id).await.map_err(ServiceError::from),
            }
        };
        let (files, zero_memory) = tokio::try_join!(files, self.zero_memory(ports, record))?;
        Ok(MachineFiles { files, zero_memory })
    }

    async fn zero_memory(
        &self,
        ports: &Ports,
        record: &VmRecord,
    ) -> Result<Option<Utf8PathBuf>, ServiceError> {
        // A saved state brings the file that its memory lies over.
        if matches!(self.start, Start::State(_)) {
            return Ok(None);
        }
        match ports.hypervisor(&record.template)?.probe().await?.abilities.load.memory() {
            Some(MemoryShape::PagesOverBase) => {
                Ok(Some(ports.vm_storage.zero_memory(record.template.machine_memory_mib()).await?))
            }
            _ => Ok(None),
        }
    }

    /// Puts together what the machine and its guest are told.
    ///
    /// # Errors
    /// A disk or a shared folder of the user's that is not there.
    pub(crate) async fn prepare(
        self,
        ports: &Ports,
        record: &VmRecord,
        on: MachineFiles,
    ) -> Result<Prepared, ServiceError> {
        let Self { image, start } = self;
        let MachineFiles { files, zero_memory } = on;
        let identity = first_identity(ports, record, &image.info.config, &start);
        // A saved memory may know of epochs whose numbers a server did not live to store.
        let unknown = if matches!(start, Start::State(_)) { u64::from(MOST_LOST_EPOCHS) } else { 0 };
        Ok(Prepared {
            hypervisor: Arc::clone(ports.hypervisor(&record.template)?),
            spec: machine_spec(ports, record, &image, files, machine_start(record, &start, zero_memory))
                .await?,
            identity,
            // One more than any that the guest can have seen; it refuses others.
            epoch: record.epoch + unknown + 1,
            boot: matches!(start, Start::Boot(_)),
            at_boot_mib: record.template.memory_at_boot_mib(),
            is_new: record.started_ms.is_none(),
            kernel: record.template.kernel.clone(),
            deadline: Duration::from_millis(record.template.boot_timeout_ms),
            config: image.info.config,
            image_digest: image.info.digest,
            _start: start,
        })
    }
}

/// A machine that can be launched.
pub(crate) struct Prepared {
    hypervisor: Arc<dyn Hypervisor>,
    spec: MachineSpec,
    identity: Identity,
    epoch: u64,
    boot: bool,
    /// Memory that its guest has from a boot on, in MiB; `None`: all of the machine's.
    at_boot_mib: Option<u32>,
    /// Whether its VM never had a machine.
    is_new: bool,
    /// Name of its kernel.
    kernel: String,
    /// What it begins from is there as long as this is.
    _start: Start,
    /// For its guest to answer.
    deadline: Duration,
    config: ImageConfig,
    image_digest: String,
}

impl Prepared {
    /// Creates the machine, paused before its first instruction or where its state was taken. `kill_deadline`: how long it
    /// may take to end if it is undone.
    pub(crate) async fn launch(self, kill_deadline: Duration) -> Result<Launched, ServiceError> {
        let began = tokio::time::Instant::now();
        let machine = self.hypervisor.launch(&self.spec).await?;
        let machine = undo::unless_kept((machine, kill_deadline), |(machine, deadline)| {
            // A drop cannot wait; the sweep of the failed start waits for what this leaves.
            tokio::spawn(async move { machine.kill(deadline).await });
        });
        Ok(Launched { machine, began, prepared: self })
    }
}

/// A machine that exists. Dropped, it is killed.
pub(crate) struct Launched {
    machine: Undo<(Arc<dyn Machine>, Duration)>,
    began: tokio::time::Instant,
    prepared: Prepared,
}

impl Launched {
    /// Has the machine run and its agent confirm its identity. `balloon_patience`: how long its guest may take to begin to give up
    /// memory that it does not have from a boot on.
    pub(crate) async fn connect(
        self,
        ports: &Ports,
        balloon_patience: Duration,
    ) -> Result<Connected, ServiceError> {
        let Prepared {
            hypervisor,
            spec,
            identity,
            epoch,
            boot,
            at_boot_mib,
            is_new,
            kernel,
            _start,
            deadline,
            config,
            image_digest,
        } = self.prepared;
        let machine = Arc::clone(&self.machine.0);
        let endpoint = machine.endpoint();
        let connect = ports.connector.connect(&endpoint, epoch, &identity, deadline);
        let up = async {
            // Side by side: the agent greets as soon as it runs, and the connector listens from before that.
            let (resumed, guest) = tokio::join!(machine.resume(), connect);
            resumed?;
            Ok::<_, ServiceError>(guest?)
        };
        let failed = |kind, reason| boot_error(&*hypervisor, &spec.directory, kind, reason);
        let guest = tokio::select! {
            biased;
            // First: the reason for an end says more than the channel that broke with it.
            exit = exited(machine.state()) => return Err(failed(ErrorKind::Internal, exit.to_string()).await),
            guest = up => guest,
        };
        let guest = match guest {
            Ok(guest) => undo::unless_kept(guest, |guest| guest.close()),
            // A guest that dies closes its channel a moment before its machine is seen to have ended.
            Err(ServiceError::Guest(error @ (GuestError::Closed(_) | GuestError::Unreachable(_)))) => {
                let exit = tokio::time::timeout(EXIT_AFTER_CLOSE, exited(machine.state())).await;
                let why = exit.map_or_else(|_| error.to_string(), |exit| exit.to_string());
                return Err(failed(ErrorKind::Internal, why).await);
            }
            Err(ServiceError::Guest(error)) => return Err(failed(error.kind(), error.to_string()).await),
            Err(error) => return Err(error),
        };
        if boot {
            machine.booted();
            if let Some(memory_mib) = at_boot_mib {
                // A saved state has its balloon as it was.
                let balloon = machine.balloon().ok_or(ServiceError::NoBalloon)?;
                balloon.resize(memory_mib).await?;
                if !balloon.followed(spec.memory_mib, balloon_patience).await? {
                    // One that ran before, with a kernel that was exchanged since, or by an earlier version, still runs.
                    if is_new {
                        return Err(ServiceError::NoBalloonDriver { kernel });
                    }
                    tracing::warn!(vm = %spec.id, kernel, memory_mib, "its kernel has no driver for a balloon: the guest keeps all memory of its machine");
                }
            }
        }
        Ok(Connected {
            guest,
            machine: self.machine,
            epoch,
            config,
            image_digest,
            boot,
            took: self.began.elapsed(),
        })
    }
}

/// A machine that runs and whose agent has confirmed its identity. Dropped, its channel is closed and it is killed.
pub(crate) struct Connected {
    guest: Undo<Arc<dyn Guest>>,
    machine: Undo<(Arc<dyn Machine>, Duration)>,
    /// The epoch that the agent has confirmed.
    pub(crate) epoch: u64,
    /// How programs run in its image.
    pub(crate) config: ImageConfig,
    pub(crate) image_digest: String,
    /// Whether it booted.
    pub(crate) boot: bool,
    /// From its launch to its agent's answer.
    pub(crate) took: Duration,
}

impl Connected {
    /// It belongs to its VM now.
    pub(crate) fn keep(self) -> (Arc<dyn Machine>, Arc<dyn Guest>) {
        let (machine, _) = undo::keep(self.machine);
        (machine, undo::keep(self.guest))
    }
}
