//! Memory of a hibernated VM: where it is, how the VM wakes from it, and when it goes.

use microvm_ports::snapshot::BranchSource;
use microvm_ports::storage::VmFiles;
use microvm_ports::{Progress, StorageError};
use microvm_types::SnapshotId;
use microvm_types::vm::VmRecord;

use crate::error::ServiceError;
use crate::vm::shared::Shared;

/// State and files that a hibernated VM wakes from; `None` if it is not hibernated.
pub(super) async fn of(
    shared: &Shared,
    record: &VmRecord,
) -> Result<Option<(BranchSource, VmFiles)>, ServiceError> {
    let Some(snapshot) = record.life.asleep() else { return Ok(None) };
    let snapshots = &shared.ports.snapshots;
    let waken = async {
        let source =
            snapshots.snapshot_source(snapshot, 1, shared.ports.load_shape(&record.template).await?).await?;
        // Before its disk is put back on what cannot be loaded.
        check_loadable(shared, record, &source).await?;
        Ok::<_, ServiceError>(source)
    };
    // Only what will not pass by itself is told as a memory that cannot be loaded; a full disk is told as that.
    let source = match waken.await {
        Err(error @ (ServiceError::Launch(_) | ServiceError::Storage(StorageError::Damaged { .. }))) => {
            return Err(ServiceError::CannotWake { vm: record.name.clone(), cause: Box::new(error) });
        }
        other => other?,
    };
    // Memory and disk belong together: the disk goes back to the moment of the save.
    let files = snapshots.reset_vm_files(&record.id, &source).await?;
    Ok(Some((source, files)))
}

/// Removes memory that a VM no longer sleeps on, after its record says so.
pub(super) async fn end(shared: &Shared, record: &VmRecord, slept: Option<SnapshotId>) {
    let Some(snapshot) = slept else { return };
    // A later snapshot of this VM may build on it: that gets what it needs of it.
    let _alone = shared.absorbing.lock().await;
    match shared.ports.snapshots.absorb_snapshot(&snapshot, Progress::ignored()).await {
        Ok(changed) => {
            shared.snapshots.remove(&snapshot);
            changed.into_iter().for_each(|info| shared.snapshots.renew(info));
            shared.litter.notify_one();
        }
        Err(error) => {
            tracing::warn!(vm = %record.id, %error, "what it slept on stays until the next start of the server removes it")
        }
    }
}

/// Refuses a state that this host cannot load, before the present is given up for it.
pub(super) async fn check_loadable(
    shared: &Shared,
    record: &VmRecord,
    source: &BranchSource,
) -> Result<(), ServiceError> {
    let hypervisor = shared.ports.hypervisor(&record.template)?;
    let loader = hypervisor.loader().ok_or(ServiceError::NoBranching)?;
    Ok(loader.check(&source.description.compatibility).await?)
}
