//! Removes what deleted VMs and snapshots leave behind: layers and memory files that nobody names any more.

use std::sync::Arc;
use std::time::Duration;

use crate::vm::shared::Shared;

/// Bytes of materialised memory kept beyond what VMs use, so that restoring the same snapshots again is fast.
const KEEP_MEMORY_BYTES: u64 = 8 << 30;
/// Rest between two rounds: a hundred VMs that are deleted one after the other need one round, not a hundred.
const REST: Duration = Duration::from_secs(2);

/// Lives as long as the server: waits until something was removed, then looks for what is left of it.
pub(crate) async fn keep_clean(shared: Arc<Shared>) {
    loop {
        tokio::select! {
            () = shared.ending.cancelled() => return,
            () = shared.litter.notified() => {}
        }
        match shared.ports.snapshots.collect_snapshot_garbage(KEEP_MEMORY_BYTES).await {
            Ok(0) => {}
            Ok(bytes) => tracing::debug!(bytes, "what nobody needs any more was removed"),
            Err(error) => {
                tracing::warn!(%error, "what snapshots and forks left behind could not be removed");
            }
        }
        tokio::select! {
            () = shared.ending.cancelled() => return,
            () = tokio::time::sleep(REST) => {}
        }
    }
}
