//! The last room of the host's disk: VMs that grow are paused before they take it.
//!
//! One guest that fills the disk would otherwise stop every other guest at its next write.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use microvm_types::{Phase, VmId};

use crate::vm::command::{Command, Order};
use crate::vm::shared::Shared;

/// Interval of looks while there is room: no event tells that a file system gets full.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// A VM whose files take so many bytes more than at the last look grows. What an idle guest writes (its log, times of last
/// access) is less.
const GROWTH: u64 = 1 << 20;
/// Lives as long as the server.
pub(crate) async fn keep_room(shared: Arc<Shared>) {
    let mut before = HashMap::new();
    loop {
        tokio::select! {
            () = shared.ending.cancelled() => return,
            () = shared.ports.clock.sleep(LOOK_EVERY) => {}
        }
        match shared.is_short_of_room().await {
            Ok(true) => before = stop_growing(&shared, &before).await,
            Ok(false) => before.clear(),
            Err(error) => tracing::warn!(%error, "the free space cannot be told"),
        }
    }
}

/// Stops those that have grown since the last look; returns what all take now.
async fn stop_growing(shared: &Shared, before: &HashMap<VmId, u64>) -> HashMap<VmId, u64> {
    let mut now = HashMap::new();
    for handle in shared.registry.all() {
        // Released before the disk is asked: whoever publishes must not wait for it.
        let (id, phase) = {
            let snapshot = handle.published.borrow();
            (snapshot.record.id.clone(), snapshot.record.phase())
        };
        if phase != Phase::Running {
            continue;
        }
        // One that is being removed has nothing to tell.
        let Ok(bytes) = shared.ports.vm_storage.vm_disk_usage(&id).await else { continue };
        // At the first look after the disk got short nothing is known to grow yet.
        let grown = before.get(&id).is_some_and(|before| bytes.saturating_sub(*before) >= GROWTH);
        now.insert(id.clone(), bytes);
        if grown {
            tracing::warn!(vm = %id, bytes, "the disk is nearly full and this VM grows: it is paused until there is room");
            // A busy one is asked at the next look again.
            let _ =
                handle.commands.try_send(Order { command: Command::MakeRoom, cause: handle.cause.clone() });
        }
    }
    now
}
