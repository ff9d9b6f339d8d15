//! VMs and their life, as a caller sees them.

mod act;
pub(crate) mod reconcile;
pub(crate) mod room;
mod wait;

use std::sync::Arc;
use std::time::Duration;

use microvm_ports::Guest;
use microvm_ports::hypervisor::{ConsolePart, MachineCounters};
use microvm_ports::storage::LostDisks;
use microvm_types::template::Template;
use microvm_types::vm::{PoolMember, VmRecord};
use microvm_types::{OperationName, Phase, Unreadable, VmRef};

pub use self::act::VmStats;
pub use self::wait::Wanted;
use crate::admission;
use crate::context::Context;
use crate::creation::{self, BootChoice, CreateRequest, Parts};
use crate::error::ServiceError;
use crate::events::Events;
use crate::golden::Goldens;
use crate::launch::shares;
use crate::vm::command::Command;
use crate::vm::lease::GuestLease;
use crate::vm::registry::VmHandle;
use crate::vm::view::{VmFilter, VmView};

/// Creates a VM for an operation that was authorised.
pub(crate) async fn create_as_asked(
    context: &Context,
    request: CreateRequest,
) -> Result<VmView, ServiceError> {
    // Overrides are applied before anything is checked: what is checked is what is made.
    let template = context.shared.template(request.template.as_deref())?.with(request.overrides.clone());
    admission::check_labels(&request.vm.labels)?;
    admission::check_labels(&template.labels)?;
    create_from(context, template, request, None).await
}

/// Creates a VM of a template that was made for it.
pub(crate) async fn create_from(
    context: &Context,
    template: Template,
    request: CreateRequest,
    pool: Option<PoolMember>,
) -> Result<VmView, ServiceError> {
    let _making = context.shared.making.read().await;
    let parts = Parts::resolve(context, template).await?;
    if request.vm.limits.hibernate_seconds.is_some() {
        shares::check_whole(&parts.template)?;
    }
    let from = match request.boot {
        BootChoice::Auto if request.start => {
            // Boxed: the future that makes a golden snapshot is large, and most creations only look one up.
            match Box::pin(Goldens::new(context).source(&parts)).await {
                // A machine that does not come up would not come up for this VM either.
                Err(
                    error @ (ServiceError::Boot { .. }
                    | ServiceError::ShuttingDown
                    | ServiceError::Launch(_)
                    | ServiceError::NoBalloonDriver { .. }),
                ) => {
                    return Err(error);
                }
                Err(error) => {
                    tracing::warn!(template = %parts.template.name, %error, "there is no golden snapshot to fork from, the VM boots");
                    None
                }
                Ok(golden) => golden,
            }
        }
        BootChoice::Auto | BootChoice::Cold => None,
    };
    creation::create(context, parts, request, from, pool).await
}

/// VMs and their life.
#[derive(Debug, Clone)]
pub struct Vms {
    context: Context,
}

impl Vms {
    pub(crate) fn new(context: &Context) -> Self {
        Self { context: context.clone() }
    }

    /// Creates a VM, and starts it if asked. If it fails, or if the future is dropped before it has ended,
    /// nothing is left of it.
    ///
    /// # Errors
    /// See [`ServiceError`]; in particular a name that is taken, sizes that cannot be, and a boot that failed.
    pub async fn create(&self, request: CreateRequest) -> Result<VmView, ServiceError> {
        self.context.authorise(OperationName::VM_CREATE)?;
        create_as_asked(&self.context, request).await
    }

    /// VMs that match, in order of creation.
    ///
    /// # Errors
    /// [`ServiceError::Forbidden`].
    pub fn list(&self, filter: &VmFilter) -> Result<Vec<VmView>, ServiceError> {
        self.context.authorise(OperationName::VM_LIST)?;
        let all = self.context.shared.registry.of(&self.context.caller.tenant);
        Ok(all.iter().map(VmHandle::view).filter(|vm| filter.matches(&vm.record)).collect())
    }

    /// One VM.
    ///
    /// # Errors
    /// [`ServiceError::UnknownVm`].
    pub fn get(&self, vm: &VmRef) -> Result<VmView, ServiceError> {
        self.context.authorise(OperationName::VM_GET)?;
        self.context.find(vm).map(|handle| handle.view())
    }

    /// Starts a VM that is stopped or failed. Running already is fine.
    ///
    /// # Errors
    /// See [`ServiceError`].
    pub async fn start(&self, vm: &VmRef) -> Result<VmView, ServiceError> {
        self.context.authorise(OperationName::VM_START)?;
        self.context.command(vm, |reply| Command::Start { cold: false, reply }).await
    }

    /// Boots a VM that is stopped, sleeps, or has failed from its disk: what a sleeping one had in its memory is given up, as
    /// after a power cut. Running already is fine.
    ///
    /// # Errors
    /// See [`ServiceError`]; a VM that sleeps still sleeps then.
    pub async fn start_cold(&self, vm: &VmRef) -> Result<VmView, ServiceError> {
        self.context.authorise(OperationName::VM_START)?;
        self.context.command(vm, |reply| Command::Start { cold: true, reply }).await
    }

    /// Stops a VM: by its agent within `grace`, then hard; at once if `force`. Stopped already is fine.
    ///
    /// # Errors
    /// See [`ServiceError`].
    pub async fn stop(
        &self,
        vm: &VmRef,
        force: bool,
        grace: Option<Duration>,
    ) -> Result<VmView, ServiceError> {
        self.context.authorise(OperationName::VM_STOP)?;
        let grace = grace.unwrap_or(self.context.shared.settings.stop_grace);
        self.context.command(vm, |reply| Command::Stop { force, grace, reply }).await
    }

    /// Stops the processors of a VM; its memory stays.
    ///
    /// # Errors
    /// See [`ServiceError`].
    pub async fn pause(&self, vm: &VmRef) -> Result<VmView, ServiceError> {
        self.context.authorise(OperationName::VM_PAUSE)?;
        self.context.command(vm, Command::Pause).await
    }

    /// Resumes a paused VM.
    ///
    /// # Errors
    /// See [`ServiceError`].
    pub async fn resume(&self, vm: &VmRef) -> Result<VmView, ServiceError> {
        self.context.authorise(OperationName::VM_RESUME)?;
        self.context.command(vm, Command::Resume).await
    }

    /// Resizes a running VM: its memory in MiB, between a little and what its machine was made with; what is freed goes back to the
    /// host. A number of processors must be the one that it has.
    ///
    /// # Errors
    /// [`ServiceError::Invalid`] if neither is given; [`ServiceError::OverLimit`] above what its machine was made with;
    /// [`ServiceError::NoBalloon`]; [`ServiceError::NoProcessorHotplug`].
    pub async fn resize(
        &self,
        vm: &VmRef,
        memory_mib: Option<u32>,
        vcpus: Option<u32>,
    ) -> Result<VmView, ServiceError> {
        self.context.authorise(OperationName::VM_RESIZE)?;
        // Before the memory: a request that is refused changes nothing.
        let has = self.context.find(vm)?.record().template.vcpus;
        if let Some(asked) = vcpus.filter(|asked| *asked != has) {
            return Err(ServiceError::NoProcessorHotplug(asked));
        }
        match (memory_mib, vcpus) {
            (Some(memory_mib), _) => {
                self.context.command(vm, |reply| Command::ResizeMemory { memory_mib, reply }).await
            }
            (None, Some(_)) => self.context.find(vm).map(|handle| handle.view()),
            (None, None) => {
                let reason = "give a size of the memory, or a number of processors".to_owned();
                Err(ServiceError::Invalid { field: "memory_mib", reason })
            }
        }
    }

    /// Hibernates a running or paused VM: its memory goes to disk and its VMM ends. The next start, or the next request that
    /// needs its guest, resumes it.
    ///
    /// # Errors
    /// See [`ServiceError`]; the VM goes on then.
    pub async fn hibernate(&self, vm: &VmRef) -> Result<VmView, ServiceError> {
        self.context.authorise(OperationName::VM_HIBERNATE)?;
        self.context.command(vm, Command::Hibernate).await
    }

    /// Removes a VM whatever it is doing: machine, files, row. Two callers at once both succeed. `forget_disks`: also if disk
    /// files of the user's cannot take what the VM wrote to them since it was branched, which is given up.
    ///
    /// # Errors
    /// See [`ServiceError`].
    pub async fn delete(&self, vm: &VmRef, forget_disks: bool) -> Result<(), ServiceError> {
        self.context.authorise(OperationName::VM_DELETE)?;
        let lost = if forget_disks { LostDisks::Forget } else { LostDisks::GiveUpRemoved };
        self.context.find(vm)?.delete(lost).await
    }

    /// The guest of a running VM, for one operation in it. A VM whose channel is being opened again after a restart of the
    /// server is waited for.
    ///
    /// # Errors
    /// [`ServiceError::NotRunning`] with what to do; [`ServiceError::Forbidden`] if the caller may not do the operation.
    pub async fn guest(&self, vm: &VmRef, operation: OperationName) -> Result<GuestLease, ServiceError> {
        self.context.authorise(operation)?;
        self.context.owned(vm)?.guest(&self.context.shared).await
    }

    /// The guest of a VM if it can be talked to at this moment: nothing is woken or waited for, and it counts as no use.
    ///
    /// # Errors
    /// [`ServiceError::UnknownVm`]; [`ServiceError::Forbidden`] if the caller may not do the operation.
    pub fn guest_at_hand(
        &self,
        vm: &VmRef,
        operation: OperationName,
    ) -> Result<Option<Arc<dyn Guest>>, ServiceError> {
        self.context.authorise(operation)?;
        let handle = self.context.owned(vm)?;
        let now = handle.published.borrow();
        // One that is paused would answer nothing.
        Ok(now.guest.clone().filter(|_| now.record.phase() == Phase::Running))
    }

    /// Counters of a VM that has a machine.
    ///
    /// # Errors
    /// [`ServiceError::NotRunning`].
    pub async fn counters(&self, vm: &VmRef) -> Result<MachineCounters, ServiceError> {
        self.context.authorise(OperationName::VM_METRICS)?;
        let handle = self.context.find(vm)?;
        // Released before the VMM is asked: whoever publishes must not wait for it.
        let (machine, phase) = {
            let now = handle.published.borrow();
            (now.machine.clone(), now.record.phase())
        };
        Ok(machine.ok_or_else(|| ServiceError::NotRunning(phase))?.counters().await?)
    }

    /// At most `limit` bytes of a VM's console: the newest, or with `from` those from that offset on. What is kept is kept
    /// until the VM is deleted.
    ///
    /// # Errors
    /// [`ServiceError::UnknownVm`]; storage errors.
    pub async fn console(
        &self,
        vm: &VmRef,
        from: Option<u64>,
        limit: usize,
    ) -> Result<ConsolePart, ServiceError> {
        self.context.authorise(OperationName::VM_CONSOLE)?;
        // Read from disk: the console of a VM that failed is what people look for.
        let VmRecord { id, template, .. } = self.context.find(vm)?.record();
        let directory = self.context.shared.ports.vm_storage.vm_directory(&id);
        let hypervisor = self.context.shared.ports.hypervisor(&template)?;
        let console = hypervisor.console(&directory, from, limit).await;
        console.map_err(|cause| {
            microvm_ports::StorageError::Io { action: "reading the console in", path: directory, cause }
                .into()
        })
    }

    /// Changes of the phases of VMs from now on. A watcher that falls behind is told how many events it missed.
    ///
    /// # Errors
    /// [`ServiceError::Forbidden`].
    pub fn events(&self) -> Result<Events, ServiceError> {
        self.context.authorise(OperationName::EVENT_FOLLOW)?;
        Ok(self.context.shared.events.watch(&self.context.caller.tenant))
    }

    /// Records of VMs of the caller's tenant that could not be read when the engine began; their files and processes are left
    /// alone.
    ///
    /// # Errors
    /// [`ServiceError::Forbidden`].
    pub fn unreadable(&self) -> Result<Vec<Unreadable>, ServiceError> {
        self.context.authorise(OperationName::VM_LIST)?;
        Ok(self.context.shared.unreadable.vms.of(&self.context.caller.tenant))
    }
}
