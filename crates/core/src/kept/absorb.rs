//! Removal of snapshots: by request, or because a VM has too many.

use microvm_ports::{Progress, StorageError};
use microvm_types::VmId;
use microvm_types::snapshot::SnapshotPurpose;

use super::names::is_named;
use crate::error::ServiceError;
use crate::state::Snapshot;
use crate::vm::shared::Shared;

/// Removes a snapshot; with `cascade` also those that build on it, which otherwise keep it. `reference`: as whoever asks
/// calls it.
pub(crate) async fn remove(
    shared: &Shared,
    snapshot: Snapshot,
    reference: &str,
    cascade: bool,
) -> Result<usize, ServiceError> {
    let mut doomed = vec![snapshot];
    if cascade {
        let mut next = 0;
        while let Some(parent) = doomed.get(next).map(|parent| parent.record.id.clone()) {
            // Walked breadth first, so that the list holds parents before their children.
            let children = shared.snapshots.all();
            doomed.extend(children.into_iter().filter(|child| child.info.parent.as_ref() == Some(&parent)));
            next += 1;
        }
    }
    // A VM sleeps on it: without it the VM could never wake.
    if let Some(sleep) = doomed.iter().find(|one| one.record.purpose == SnapshotPurpose::Hibernation) {
        let users = format!("the VM `{}`, which sleeps on it: start it first", sleep.record.vm_name);
        return Err(StorageError::InUse { name: format!("the snapshot `{reference}`"), users }.into());
    }
    let count = doomed.len();
    // Children before parents: at no time does one stand without what it builds on.
    for snapshot in doomed.into_iter().rev() {
        shared.ports.snapshots.remove_snapshot(&snapshot.record.id).await?;
        shared.snapshots.remove(&snapshot.record.id);
    }
    shared.litter.notify_one();
    Ok(count)
}

/// True if a snapshot may be removed without a request: nothing of another VM was made from it.
pub(crate) fn may_go(shared: &Shared, snapshot: &Snapshot) -> bool {
    let all = shared.snapshots.all();
    let children = |one: &&Snapshot| one.info.parent.as_ref() == Some(&snapshot.record.id);
    all.iter().filter(children).all(|child| child.record.vm == snapshot.record.vm)
}

/// Removes a snapshot; later ones of the same VM that build on it get what they need of it.
pub(crate) async fn absorb(shared: &Shared, snapshot: &Snapshot) -> Result<(), ServiceError> {
    let id = &snapshot.record.id;
    // One at a time: two neighbours of one chain would each write into a child that the other removes.
    let _alone = shared.absorbing.lock().await;
    let changed = shared.ports.snapshots.absorb_snapshot(id, Progress::ignored()).await?;
    shared.snapshots.remove(id);
    for info in changed {
        shared.snapshots.renew(info);
    }
    Ok(())
}

/// Keeps a VM within its limits.
pub(crate) async fn drop_oldest(shared: &Shared, vm: &VmId) {
    let settings = &shared.settings;
    drop_oldest_of(shared, vm, false, settings.snapshots_per_vm).await;
    if let Some(limit) = settings.named_snapshots_per_vm {
        drop_oldest_of(shared, vm, true, limit).await;
    }
}

async fn drop_oldest_of(shared: &Shared, vm: &VmId, named: bool, limit: usize) {
    let mut of_vm = shared.snapshots.of_vm(vm);
    of_vm.retain(|one| is_named(&one.record) == named);
    let mut left = of_vm.len();
    // Never the newest: it was just taken.
    of_vm.pop();
    for oldest in of_vm {
        if left <= limit {
            return;
        }
        if !may_go(shared, &oldest) {
            continue;
        }
        tracing::info!(snapshot = %oldest.record.name, limit, named, "the VM has too many snapshots, its oldest goes");
        match absorb(shared, &oldest).await {
            Ok(()) => left -= 1,
            // The next one goes in its place.
            Err(error) => tracing::warn!(snapshot = %oldest.record.name, %error, "it could not be removed"),
        }
    }
}
