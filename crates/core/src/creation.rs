//! Making one VM: checks, the record, the actor. What it is forked from is the caller's to say.

use microvm_ports::storage::{ResolvedImage, ResolvedKernel};
use microvm_types::template::{Overrides, Template};
use microvm_types::vm::{NewVm, Origin, PoolMember, VmRecord};
use microvm_types::{Life, Name};
use tokio::sync::oneshot;

use crate::admission;
use crate::context::Context;
use crate::error::ServiceError;
use crate::launch::{Planned, Start, shares};
use crate::state::{Demand, StartingPoint};
use crate::undo;
use crate::vm::command::Beginning;
use crate::vm::view::VmView;
use crate::vm::{self, guard, volumes};

/// A request for a new VM.
#[derive(Debug, Clone, Default)]
pub struct CreateRequest {
    /// Its name; `None`: one is made.
    pub name: Option<Name>,
    /// Template by name; `None`: the default one.
    pub template: Option<String>,
    /// Changes to the template.
    pub overrides: Overrides,
    /// Wishes of the owner.
    pub vm: NewVm,
    /// True: it runs when the call returns.
    pub start: bool,
    /// Choice between a boot and a fork.
    pub boot: BootChoice,
}

/// Way in which a new VM comes to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum BootChoice {
    /// Forked from the golden snapshot of its template where that is possible.
    #[default]
    Auto,
    /// From nothing.
    Cold,
}

/// Parts of a new VM.
pub(crate) struct Parts {
    pub(crate) template: Template,
    pub(crate) image: ResolvedImage,
    pub(crate) kernel: ResolvedKernel,
    /// Keeps the volumes until the VM is registered; `None` for parts without any.
    pub(crate) held: Option<volumes::HeldVolumes>,
}

impl Parts {
    /// Looks at everything that the template names. Unknown images and kernels are refused before anything is made.
    pub(crate) async fn resolve(context: &Context, mut template: Template) -> Result<Self, ServiceError> {
        let shared = &context.shared;
        // Sizes first: they are refused without asking storage or the hypervisor.
        admission::check(&template, &shared.settings.limits)?;
        let (image, kernel) = tokio::try_join!(
            shared.ports.images.image(&template.image),
            shared.ports.kernels.kernel(&template.kernel)
        )?;
        // From here on the template names its driver, so that the record finds it again.
        let hypervisor = shared.ports.hypervisors.settle(&mut template)?;
        admission::check_abilities(&template, &hypervisor.probe().await?.abilities)?;
        shares::admit(&shared.ports, &mut template, &kernel).await?;
        // Real paths are fixed once, and none may lead to the server's own files: those of volumes, added below, alone do.
        for disk in &mut template.extra_disks {
            let real = shared.ports.vm_storage.real_disk_path(disk.path.as_str().into()).await?;
            disk.path = real.into_string();
        }
        let held = Some(volumes::attach(shared, &context.caller.tenant, &mut template).await?);
        // So are formats: the guest can write what a format would be read from later.
        for disk in &mut template.extra_disks {
            let path = disk.path.as_str().into();
            disk.format = Some(shared.ports.vm_storage.inspect_disk(path, disk.format).await?);
        }
        Ok(Self { template, image, kernel, held })
    }
}

/// Makes a VM of parts that were looked at, on a state if there is one.
pub(crate) async fn create(
    context: &Context,
    parts: Parts,
    request: CreateRequest,
    from: Option<StartingPoint>,
    pool: Option<PoolMember>,
) -> Result<VmView, ServiceError> {
    let shared = &context.shared;
    let Parts { template, image, kernel, held } = parts;
    let (start, origin, epoch) = match from {
        Some(StartingPoint { source, origin, epoch }) => (Start::State(Box::new(source)), origin, epoch),
        None => (Start::Boot(kernel), Origin::Boot, 0),
    };
    // Counted before the VM exists, so that requests at one moment cannot overshoot the limits together.
    let reservation = shared.reservations.one(Demand::of(&template))?;
    let now = shared.ports.clock.now_ms();
    let id = shared.ports.new_vm_id();
    let name = match request.name {
        Some(name) => name,
        None => made_up_name(id.as_str())?,
    };
    let mut labels = template.labels.clone();
    // The request wins over the template.
    labels.extend(request.vm.labels);
    let mut record = VmRecord {
        id: id.clone(),
        name,
        tenant: context.caller.tenant.clone(),
        created_by: context.caller.name.clone(),
        life: Life::new(),
        failure: None,
        image_digest: image.info.digest.clone(),
        template,
        labels,
        metadata: request.vm.metadata,
        limits: request.vm.limits,
        machine: None,
        origin,
        pool,
        epoch,
        generation: 0,
        boot_ms: None,
        memory_now_mib: None,
        created_ms: now,
        updated_ms: now,
        started_ms: None,
        last_stop: None,
        planned_shutdown: None,
    };
    // As a boot leaves it, and the golden snapshot of its template.
    record.memory_now_mib = record.template.memory_at_boot_mib();
    let (reply, outcome) = oneshot::channel();
    let planned = Box::new(Planned { image, start });
    let handle = vm::spawn(
        shared,
        record,
        Beginning::Create { start: request.start, planned, reply },
        &context.cause,
        reservation,
    )?;
    // From here on its record tells that it has them. Before the guard: when this is dropped the VM goes first.
    let made: Vec<_> = held.into_iter().flat_map(|held| held.registered(&id)).collect();
    let guard = guard::guard(shared, id);
    let outcome = outcome.await;
    // The actor has answered: after a failure it has removed the VM itself.
    undo::keep(guard);
    match outcome.unwrap_or(Err(ServiceError::ShuttingDown)) {
        Ok(()) => {
            made.into_iter().for_each(|volume| drop(volume.keep()));
            Ok(handle.view())
        }
        Err(error) => {
            for volume in made {
                volume.give_up().await;
            }
            Err(error)
        }
    }
}

/// A name of the form `vm-` and the last ten characters of the id: random, and a good host name.
pub(crate) fn made_up_name(id: &str) -> Result<Name, ServiceError> {
    format!("vm-{}", &id[id.len() - 10..]).parse().map_err(|error: microvm_types::NameError| {
        ServiceError::Invalid { field: "name", reason: error.to_string() }
    })
}
