//! Children of one state: all of them come up, or none is left.

use std::sync::Arc;

use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use microvm_ports::snapshot::BranchSource;
use microvm_types::VmId;
use microvm_types::vm::VmRecord;
use tokio::sync::oneshot;

use crate::abandoned::delete_in_background;
use crate::actor::Beginning;
use crate::error::ServiceError;
use crate::service::{Shared, VmService, spawn_actor, view};
use crate::view::VmView;
use crate::waiting::WaitingVmm;

/// Removes children that nobody was told of, also when the request is dropped.
struct Brood {
    shared: Arc<Shared>,
    ids: Vec<VmId>,
}

impl Drop for Brood {
    fn drop(&mut self) {
        for id in self.ids.drain(..) {
            delete_in_background(&self.shared, id);
        }
    }
}

impl VmService {
    /// Refuses what cannot fit, before anything is begun.
    pub(super) async fn check_room(
        &self,
        count: usize,
        memory_mib: u32,
        own_bytes: u64,
    ) -> Result<(), ServiceError> {
        if count == 0 {
            return Err(ServiceError::Invalid { field: "count", reason: "at least 1 is needed".to_owned() });
        }
        let limit = self.shared.settings.limits.max_vms;
        if self.shared.registry.all().len().saturating_add(count) > limit {
            return Err(ServiceError::TooManyVms { limit });
        }
        match self.shared.ports.hypervisor.room(memory_mib, own_bytes).await {
            Some(room) if room < count => Err(ServiceError::NoRoomForForks { asked: count, room }),
            _ => Ok(()),
        }
    }

    /// Brings up one VM per record from the same state, several at once. `waiting`: VMMs of some of them.
    pub(super) async fn bring_up_children(
        &self,
        source: &BranchSource,
        records: Vec<VmRecord>,
        mut waiting: Vec<WaitingVmm>,
    ) -> Result<Vec<VmView>, ServiceError> {
        let count = records.len();
        let mut brood = Brood { shared: Arc::clone(&self.shared), ids: Vec::new() };
        let mut handles = Vec::new();
        let mut coming = FuturesUnordered::new();
        for (index, record) in records.into_iter().enumerate() {
            let id = record.id.clone();
            let (reply, outcome) = oneshot::channel();
            let beginning = Beginning::Create { start: true, source: Some(Box::new(source.clone())), reply };
            handles.push(spawn_actor(&self.shared, record, beginning)?);
            if let Some(index) = waiting.iter().position(|one| one.id() == Some(&id)) {
                waiting.swap_remove(index).claim();
            }
            brood.ids.push(id);
            coming.push(async move { (index, outcome.await) });
        }
        while let Some((index, outcome)) = coming.next().await {
            if let Err(error) = outcome.map_err(|_| ServiceError::ShuttingDown).and_then(|outcome| outcome) {
                // Told when all are gone: whoever tries again finds names and memory free.
                let gone = brood.ids.iter().map(|id| self.delete_child(id));
                futures::future::join_all(gone).await;
                if count == 1 {
                    return Err(error);
                }
                return Err(ServiceError::Fork { number: index + 1, count, cause: Box::new(error) });
            }
        }
        brood.ids.clear();
        Ok(handles.iter().map(view).collect())
    }

    pub(super) async fn delete_child(&self, id: &VmId) {
        match self.delete_vm(&id.clone().into()).await {
            Ok(()) | Err(ServiceError::UnknownVm(_)) => {}
            Err(error) => tracing::warn!(vm = %id, %error, "a child of a failed fork could not be deleted"),
        }
    }
}
