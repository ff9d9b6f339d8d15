//! Snapshots of other hosts.

use std::sync::Arc;

use camino::Utf8Path;
use microvm_ports::snapshot::{ImportLimits, SnapshotInfo};
use microvm_ports::{DocumentKind, Progress, StorageError};
use microvm_types::snapshot::{SnapshotPurpose, SnapshotRecord};
use microvm_types::template::{NetworkMode, Template};
use microvm_types::{Name, OperationName};

use super::{Snapshots, names};
use crate::admission;
use crate::context::Context;
use crate::error::ServiceError;
use crate::state::{GOLDEN_LABEL, Snapshot};

impl Snapshots {
    /// Takes in an exported snapshot. Its image must be here, since its disk lies over it. What the file says of itself is
    /// a stranger's word: it becomes a plain snapshot of a VM that is not here, without hooks and disks of this host. If the
    /// future is dropped it goes on to its end.
    ///
    /// # Errors
    /// Storage errors; a name that is taken; sizes beyond what this host allows.
    pub async fn import(
        &self,
        name: Name,
        from: &Utf8Path,
        progress: Progress,
    ) -> Result<Snapshot, ServiceError> {
        self.context.authorise(OperationName::SNAPSHOT_IMPORT)?;
        let shared = Arc::clone(&self.context.shared);
        let id = shared.new_snapshot_id();
        let reserved = names::reserve(&shared, &self.context.caller.tenant, &name)?;
        let (context, from) = (self.context.clone(), from.to_owned());
        // A task of its own: half an import would be a snapshot that no record describes.
        let importing = self.context.shared.actors.spawn(async move {
            // It needs its image, and nothing says so before its record is there.
            let _making = shared.making.read().await;
            let host = &shared.settings.limits;
            let limits = ImportLimits { memory_mib: host.max_memory_mib, disk_mib: host.max_disk_mib };
            let snapshots = &shared.ports.snapshots;
            let info = snapshots.import_snapshot(&id, &from, limits, progress).await?;
            match adapt(&context, &info, &from, name).await {
                Ok(record) => {
                    let snapshot = Snapshot { record, info };
                    names::keep(reserved, snapshot.clone());
                    Ok(snapshot)
                }
                // Nothing describes it: it goes before anybody can see it.
                Err(error) => {
                    snapshots.remove_snapshot(&id).await?;
                    Err(error)
                }
            }
        });
        importing.await.map_err(|_| ServiceError::ShuttingDown)?
    }
}

/// Takes over what may be kept of a stranger's description, and stores it where the next server finds it.
async fn adapt(
    context: &Context,
    info: &SnapshotInfo,
    from: &Utf8Path,
    name: Name,
) -> Result<SnapshotRecord, ServiceError> {
    let bad = |detail: String| StorageError::BadInput { what: from.to_string(), detail };
    let theirs: SnapshotRecord = serde_json::from_value(info.description.record.clone())
        .map_err(|error| bad(format!("its description cannot be read: {error}")))?;
    let SnapshotRecord {
        // Ours to say.
        id: _,
        name: _,
        tenant: _,
        purpose: _,
        vm: _,
        description,
        vm_name,
        template,
        memory_now_mib,
        image_digest,
        mut labels,
        epoch,
        created_ms,
        pause_us,
    } = theirs;
    // It means something here: a VM with this label is hidden, and removed as a leftover.
    labels.remove(GOLDEN_LABEL);
    let template = of_a_stranger(template);
    admission::check(&template, &context.shared.settings.limits)?;
    // The description was checked by the store; the record inside of it is checked against that.
    let sizes = (template.machine_memory_mib(), template.disk_mib);
    if sizes != (info.description.memory_mib, info.description.disk_mib) || epoch > u64::MAX / 2 {
        return Err(bad("its description does not fit its parts".to_owned()).into());
    }
    context.shared.ports.images.image(&image_digest).await?;
    let record = SnapshotRecord {
        id: info.id.clone(),
        name,
        tenant: context.caller.tenant.clone(),
        description,
        purpose: SnapshotPurpose::User,
        vm: context.shared.ports.new_vm_id(),
        vm_name,
        memory_now_mib: memory_now_mib.filter(|now| *now < template.machine_memory_mib()),
        template,
        image_digest,
        labels,
        epoch,
        // A time in the future would be kept for ever by a limit of age.
        created_ms: created_ms.min(context.shared.ports.clock.now_ms()),
        pause_us,
    };
    let document = serde_json::to_value(&record).map_err(|error| bad(error.to_string()))?;
    let kind = DocumentKind::ImportedSnapshot;
    context.shared.ports.store.put_document(kind, info.id.as_str(), &document).await?;
    Ok(record)
}

/// A stranger's template without what would act on this host. What its memory and disk were made with stays. Every field is
/// named, so that a new one does not compile before somebody has decided.
fn of_a_stranger(mut template: Template) -> Template {
    let Template {
        // A right to reach something is given here, not brought along.
        cpu_percent,
        network,
        start_commands,
        // Only golden snapshots are made with it.
        warm_up,
        labels,
        extra_disks,
        shares,
        volumes,
        hooks,
        name: _,
        description: _,
        image: _,
        kernel: _,
        // Its memory can be loaded by that only.
        hypervisor: _,
        kernel_arguments: _,
        vcpus: _,
        memory_mib: _,
        memory_max_mib: _,
        disk_mib: _,
        environment: _,
        init: _,
        boot_timeout_ms: _,
    } = &mut template;
    *network = NetworkMode::default();
    // A limit of the other host's.
    *cpu_percent = None;
    start_commands.clear();
    warm_up.clear();
    labels.remove(GOLDEN_LABEL);
    extra_disks.clear();
    shares.clear();
    volumes.clear();
    hooks.clear();
    template
}
