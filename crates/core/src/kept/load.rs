//! Snapshots of earlier servers.

use std::collections::BTreeMap;

use microvm_ports::DocumentKind;
use microvm_types::snapshot::{SnapshotPurpose, SnapshotRecord};

use super::absorb::absorb;
use crate::error::ServiceError;
use crate::state::Snapshot;
use crate::vm::shared::Shared;

/// Reads what is on disk. One that cannot be read is told and left alone.
pub(crate) async fn load(shared: &Shared) -> Result<(), ServiceError> {
    let unreadable = &shared.unreadable.snapshots;
    // Read once: looking up each snapshot by itself would be one query per snapshot.
    let imported = shared.ports.store.documents(DocumentKind::ImportedSnapshot).await?.documents;
    let imported: BTreeMap<String, serde_json::Value> = imported.into_iter().collect();
    for found in shared.ports.snapshots.snapshots().await? {
        match found {
            Ok(info) => {
                let of_file = info.description.record.clone();
                // Of an imported one a stranger wrote it; ours to tell is that record alone.
                let tenant = of_file.get("tenant").and_then(|tenant| tenant.as_str()).map(str::to_owned);
                let adapted = imported.get(info.id.as_str()).cloned();
                match serde_json::from_value::<SnapshotRecord>(adapted.unwrap_or(of_file)) {
                    Ok(record) if record.id == info.id => {
                        shared.snapshots.insert(Snapshot { record, info });
                    }
                    // Only an imported one has the id of another inside: this one's import never ended, or
                    // its record is in another copy of the database. Which of them cannot be told.
                    Ok(_) => {
                        unreadable.add(
                            "snapshot",
                            tenant.as_deref(),
                            info.id.as_str(),
                            "no record knows this imported snapshot",
                        );
                    }
                    Err(error) => {
                        let reason = format!("its description cannot be read: {error}");
                        unreadable.add("snapshot", tenant.as_deref(), info.id.as_str(), reason);
                    }
                }
            }
            Err((id, damage)) => {
                unreadable.add("snapshot", None, id.as_str(), format!("{}: {}", damage.part, damage.detail));
            }
        }
    }
    Ok(())
}

/// Removes what a VM slept on that is awake, or gone: a crash came between. It stays where it cannot be told whether the VM
/// sleeps: of a VM that has a disk and no record, and of one whose record tells of no later time at which its agent was
/// reached. Such a record may be in an older copy of the database, from before the VM fell asleep.
pub(crate) async fn remove_stray_sleeps(shared: &Shared) {
    let disks = match shared.ports.vm_storage.vm_directories().await {
        Ok(disks) => disks,
        Err(error) => {
            tracing::warn!(%error, "the VMs that have a disk cannot be listed: whatever VMs slept on stays");
            return;
        }
    };
    for snapshot in shared.snapshots.all() {
        let record = &snapshot.record;
        let asleep = || {
            let handle = shared.registry.by_id(&record.vm).ok()?;
            let of_vm = &handle.published.borrow().record;
            let sleeps_on_it = of_vm.life.asleep() == Some(&record.id);
            let may_sleep = !sleeps_on_it && of_vm.epoch <= record.epoch;
            if may_sleep {
                let (vm, snapshot) = (&record.vm, &record.id);
                tracing::warn!(%vm, %snapshot, "the record of this VM is older than what it slept on, which is kept: a newer copy of the database wakes it");
            }
            Some(sleeps_on_it || may_sleep)
        };
        if record.purpose == SnapshotPurpose::Hibernation
            && !asleep().unwrap_or_else(|| disks.contains(&record.vm))
            && let Err(error) = absorb(shared, &snapshot).await
        {
            tracing::warn!(snapshot = %record.id, %error, "what a VM slept on could not be removed");
        }
    }
}
