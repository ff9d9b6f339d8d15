//! New VMs from a snapshot, and a VM back in time.

use microvm_types::snapshot::SnapshotRecord;
use microvm_types::vm::{NewVm, Origin, VmRecord};
use microvm_types::{Life, OperationName, VmRef};

use super::Branches;
use super::children::{bring_up, check_names_free, check_room, child_record, reserve};
use super::names::names;
use crate::admission;
use crate::error::ServiceError;
use crate::launch::{Planned, Start, image_reference};
use crate::state::{GOLDEN_LABEL, Snapshot};
use crate::vm::command::Command;
use crate::vm::shared::Shared;
use crate::vm::view::VmView;

/// A restore to be made.
#[derive(Debug, Clone, Default)]
pub struct RestoreRequest {
    /// Number of VMs, at least 1.
    pub count: usize,
    /// Their names, with `{n}` for the number; `None`: made up.
    pub name: Option<String>,
    /// Wishes of the owner.
    pub vm: NewVm,
}

impl Branches {
    /// Makes new VMs that go on where a snapshot was taken. All of them come up, or none is left.
    ///
    /// # Errors
    /// See [`ServiceError`]; in particular damage to the snapshot, and another VMM build or processor.
    pub async fn restore(
        &self,
        snapshot: &str,
        request: RestoreRequest,
    ) -> Result<Vec<VmView>, ServiceError> {
        self.context.authorise(OperationName::SNAPSHOT_RESTORE)?;
        let context = &self.context;
        let shared = &context.shared;
        admission::check_labels(&request.vm.labels)?;
        // Until its records are there nothing else says that it needs image and snapshot.
        let _making = shared.making.read().await;
        let snapshot = shared.snapshots.find(&context.caller.tenant, snapshot)?;
        check_room(context, request.count, &snapshot.record.template, 0).await?;
        let places = reserve(context, request.count, &snapshot.record.template)?;
        let names = names(request.name.as_deref(), request.count)?;
        check_names_free(context, &names)?;
        let planned = planned_from(shared, &snapshot, request.count).await?;
        let from = record_of(&snapshot, &request.vm);
        let origin = Origin::Snapshot { snapshot: snapshot.record.id.clone() };
        let records = names
            .into_iter()
            .map(|name| child_record(context, shared.ports.new_vm_id(), from.clone(), name, origin.clone()))
            .collect::<Result<Vec<_>, _>>()?;
        bring_up(context, &planned, records, places, Vec::new()).await
    }

    /// Puts a VM back to a snapshot that was taken of it: what it did since is gone; id and name stay.
    ///
    /// # Errors
    /// See [`ServiceError`]. A snapshot of another VM is refused.
    pub async fn rollback(&self, vm: &VmRef, snapshot: &str) -> Result<VmView, ServiceError> {
        self.context.authorise(OperationName::SNAPSHOT_RESTORE)?;
        let (context, handle) = (&self.context, self.context.owned(vm)?);
        let snapshot = context.shared.snapshots.find(&context.caller.tenant, snapshot)?;
        let record = handle.record();
        // Another VM's disk under this name would be a new VM in disguise: `restore` makes that.
        if snapshot.record.vm != record.id {
            let SnapshotRecord { name, vm_name, .. } = &snapshot.record;
            return Err(ServiceError::OtherVmsSnapshot {
                snapshot: name.clone(),
                of: vm_name.clone(),
                vm: record.name,
            });
        }
        let ports = &context.shared.ports;
        // Prepared before the machine is ended: a damaged snapshot is refused while the VM still runs.
        let load = ports.load_shape(&snapshot.record.template).await?;
        let source = ports.snapshots.snapshot_source(&snapshot.record.id, 1, load).await?;
        let epoch = snapshot.record.epoch;
        let memory_now_mib = snapshot.record.memory_now_mib;
        handle.ask(|reply| Command::Rollback { source, epoch, memory_now_mib, reply }).await?;
        Ok(handle.view())
    }
}

/// Parts of `count` VMs that go on from a snapshot.
pub(super) async fn planned_from(
    shared: &Shared,
    snapshot: &Snapshot,
    count: usize,
) -> Result<Planned, ServiceError> {
    let load = shared.ports.load_shape(&snapshot.record.template).await?;
    let (source, image) = tokio::try_join!(
        shared.ports.snapshots.snapshot_source(&snapshot.record.id, count, load),
        shared.ports.images.image(image_reference(&snapshot.record.image_digest, &snapshot.record.template))
    )?;
    Ok(Planned { image, start: Start::State(Box::new(source)) })
}

/// A record as the snapshot's VM had it; id, name and origin are replaced.
pub(super) fn record_of(snapshot: &Snapshot, new: &NewVm) -> VmRecord {
    let record = &snapshot.record;
    let mut labels = record.labels.clone();
    // What somebody makes of the server's own snapshot is theirs: not hidden, and no leftover to be removed.
    labels.remove(GOLDEN_LABEL);
    labels.extend(new.labels.clone());
    VmRecord {
        id: record.vm.clone(),
        name: record.vm_name.clone(),
        tenant: record.tenant.clone(),
        // Whoever restores it.
        created_by: String::new(),
        life: Life::new(),
        failure: None,
        template: record.template.clone(),
        image_digest: record.image_digest.clone(),
        labels,
        metadata: new.metadata.clone(),
        limits: new.limits,
        machine: None,
        origin: Origin::Boot,
        pool: None,
        epoch: record.epoch,
        generation: 0,
        boot_ms: None,
        memory_now_mib: record.memory_now_mib,
        created_ms: 0,
        updated_ms: 0,
        started_ms: None,
        last_stop: None,
        planned_shutdown: None,
    }
}
