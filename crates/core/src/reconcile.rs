//! Making store and reality agree when the server starts.

use std::collections::HashSet;
use std::sync::Arc;

use microvm_types::VmId;

use crate::actor::Beginning;
use crate::error::ServiceError;
use crate::service::{Shared, spawn_actor};

/// Ends and removes what the store does not know, then takes up every VM it knows. Returns when every VM has an actor;
/// the actors adopt their machines at the same time, each on its own. One damaged row or one stubborn directory does not
/// keep the others from being served.
pub(crate) async fn reconcile(shared: &Arc<Shared>) -> Result<(), ServiceError> {
    let stored = shared.ports.store.vms().await?;
    for (id, reason) in &stored.unreadable {
        tracing::error!(
            vm = id,
            reason,
            "a stored record cannot be read; its files and processes are left alone"
        );
    }
    let known: HashSet<&str> = stored
        .records
        .iter()
        .map(|record| record.id.as_str())
        .chain(stored.unreadable.iter().map(|(id, _)| id.as_str()))
        .collect();
    for id in shared.ports.vm_storage.vm_directories().await? {
        if !known.contains(id.as_str())
            && let Err(error) = remove_unknown(shared, &id).await
        {
            tracing::error!(vm = %id, %error, "a VM directory that no record knows could not be removed");
        }
    }
    for record in stored.records {
        spawn_actor(shared, record, Beginning::Adopt)?;
    }
    Ok(())
}

async fn remove_unknown(shared: &Shared, id: &VmId) -> Result<(), ServiceError> {
    tracing::warn!(vm = %id, "removing a VM directory that no record knows");
    let directory = shared.ports.vm_storage.vm_directory(id);
    shared.ports.hypervisor.sweep(id, &directory).await?;
    Ok(shared.ports.vm_storage.remove_vm_files(id).await?)
}
