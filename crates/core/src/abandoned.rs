//! A creation whose caller went away before it heard of the VM.

use std::sync::Arc;

use microvm_types::VmId;
use tokio::sync::oneshot;

use crate::actor::Command;
use crate::service::Shared;

/// Deletes the VM when dropped before [`CreationGuard::keep`]: nobody knows that it exists, so nobody would ever delete it.
pub(crate) struct CreationGuard {
    shared: Arc<Shared>,
    id: Option<VmId>,
}

impl CreationGuard {
    pub(crate) fn new(shared: &Arc<Shared>, id: VmId) -> Self {
        Self { shared: Arc::clone(shared), id: Some(id) }
    }

    /// The caller has heard of it, or it is gone.
    pub(crate) fn keep(mut self) {
        self.id = None;
    }
}

impl Drop for CreationGuard {
    fn drop(&mut self) {
        if let Some(id) = self.id.take() {
            delete_in_background(&self.shared, id);
        }
    }
}

/// Deletes a VM without waiting for it.
pub(crate) fn delete_in_background(shared: &Arc<Shared>, id: VmId) {
    // A server that ends undoes half creations when it starts again.
    if shared.ending.is_cancelled() {
        return;
    }
    if let Ok(handle) = shared.registry.find(&id.into()) {
        shared.actors.spawn(async move {
            let (reply, outcome) = oneshot::channel();
            if handle.commands.send(Command::Delete(reply)).await.is_ok() {
                let _ = outcome.await;
            }
        });
    }
}
