//! Removes what deleted VMs and snapshots leave behind: layers and memory files that nobody names any more.

use std::sync::Arc;
use std::time::Duration;

use super::Snapshots;
use crate::vm::shared::Shared;

/// Bytes of materialised memory kept beyond what VMs use, so that restoring the same snapshots again is fast.
pub(crate) const KEEP_MEMORY_BYTES: u64 = 8 << 30;
/// Rest between two rounds: a hundred VMs that are deleted one after the other need one round, not a hundred.
const REST: Duration = Duration::from_secs(2);

/// Lives as long as the server: waits until something was removed, then looks for what is left of it.
pub(crate) async fn keep_clean(shared: Arc<Shared>) {
    loop {
        tokio::select! {
            () = shared.ending.cancelled() => return,
            // Told once for any number of removals; one that is told during a round begins another.
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
            () = shared.ports.clock.sleep(REST) => {}
        }
    }
}

/// Rest between two looks for snapshots that are too old.
const OLD_EVERY: Duration = Duration::from_secs(24 * 3_600);
/// Rest before the first look: a host that has just booted may have a wrong clock until it has asked for the time, and by a clock
/// that is ahead everything is old.
const OLD_FIRST: Duration = Duration::from_secs(3_600);

/// Lives as long as the server: removes snapshots that are too old an hour after it starts, and once a day. `of_tenants`: those of each
/// tenant that has any, asked for anew each time.
pub(crate) async fn keep_young(shared: Arc<Shared>, of_tenants: impl Fn() -> Vec<Snapshots>) {
    let mut rest = OLD_FIRST;
    loop {
        tokio::select! {
            () = shared.ending.cancelled() => return,
            () = shared.ports.clock.sleep(rest) => rest = OLD_EVERY,
        }
        for snapshots in of_tenants() {
            match snapshots.prune_old().await {
                Ok(pruned) => {
                    let (removed, kept) = (pruned.removed.len(), pruned.kept.len());
                    if removed + kept > 0 {
                        tracing::info!(removed, kept, "snapshots without a name of their own were too old");
                    }
                    for one in pruned.kept {
                        tracing::warn!(
                            snapshot = one.name,
                            reason = one.reason,
                            "it is too old and could not be removed"
                        );
                    }
                }
                Err(error) => tracing::warn!(%error, "old snapshots could not be looked for"),
            }
        }
    }
}
