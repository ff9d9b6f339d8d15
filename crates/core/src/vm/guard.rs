//! VMs that nobody has heard of yet: deleted when whoever makes them goes away.

use std::sync::Arc;

use microvm_ports::storage::LostDisks;
use microvm_types::VmId;

use super::shared::Shared;
use crate::error::ServiceError;
use crate::undo::{self, Undo};

/// A VM that is being made, and the way to its actor.
pub(crate) struct UnknownVm {
    shared: Arc<Shared>,
    pub(crate) id: VmId,
}

/// Deletes the VM when dropped before it is kept: nobody knows that it exists, so nobody would ever delete it.
pub(crate) type VmGuard = Undo<UnknownVm>;

/// Guards a VM.
pub(crate) fn guard(shared: &Arc<Shared>, id: VmId) -> VmGuard {
    let vm = UnknownVm { shared: Arc::clone(shared), id };
    undo::unless_kept(vm, |vm| delete_in_background(&vm.shared, &vm.id))
}

/// Deletes a guarded VM and waits for that. A failure is logged: whoever waits has something else to tell.
pub(crate) async fn remove(guard: VmGuard, what: &'static str) {
    let UnknownVm { shared, id } = undo::keep(guard);
    match delete(&shared, &id).await {
        Ok(()) | Err(ServiceError::UnknownVm(_)) => {}
        Err(error) => tracing::warn!(vm = %id, what, %error, "a VM of the server's own could not be deleted"),
    }
}

/// Deletes a VM by its id, whoever owns it.
pub(crate) async fn delete(shared: &Shared, id: &VmId) -> Result<(), ServiceError> {
    shared.registry.by_id(id)?.delete(LostDisks::GiveUpRemoved).await
}

/// Deletes a VM without waiting for it.
pub(crate) fn delete_in_background(shared: &Arc<Shared>, id: &VmId) {
    // A server that ends undoes half creations when it starts again.
    if shared.ending.is_cancelled() {
        return;
    }
    if let Ok(handle) = shared.registry.by_id(id) {
        // Joined when the engine closes, so that no deletion is cut off in the middle.
        shared.actors.spawn(async move {
            let _ = handle.delete(LostDisks::GiveUpRemoved).await;
        });
    }
}
