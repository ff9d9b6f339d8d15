//! Making store and reality agree when the server starts.

use std::collections::HashSet;
use std::sync::Arc;

use microvm_types::VmId;

use crate::actor::Beginning;
use crate::error::ServiceError;
use crate::service::{Shared, spawn_actor};

/// Ends and removes what the store does not know, then takes up every VM it knows. Returns when every VM has an actor;
/// the actors adopt their machines at the same time, each on its own.
pub(crate) async fn reconcile(shared: &Arc<Shared>) -> Result<(), ServiceError> {
    let records = shared.ports.store.vms().await?;
    let known: HashSet<&VmId> = records.iter().map(|record| &record.id).collect();
    for id in shared.ports.vm_storage.vm_directories().await? {
        if known.contains(&id) {
            continue;
        }
        tracing::warn!(vm = %id, "removing a VM directory that no record knows");
        let directory = shared.ports.vm_storage.vm_directory(&id);
        shared.ports.hypervisor.sweep(&id, &directory).await?;
        shared.ports.vm_storage.remove_vm_files(&id).await?;
    }
    for record in records {
        spawn_actor(shared, record, Beginning::Adopt)?;
    }
    Ok(())
}
