//! The last room of the host's disk: VMs that grow are paused before they take it.
//!
//! One guest that fills the disk would otherwise stop every other guest at its next write.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use microvm_types::{Phase, VmId};

use crate::vm::command::{Command, Order};
use crate::vm::shared::{Room, Shared};

/// Interval of looks while there is room: no event tells that a file system gets full.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// Interval of looks while there is little room. What a fast guest writes in it (50 MB at 200 MB/s) is less than the reserve of
/// all but the smallest disks.
const LOOK_CLOSELY_EVERY: Duration = Duration::from_millis(250);
/// Looks closely taken until growth is counted anew.
const COUNTED_LOOKS: u32 = 8;
/// A VM whose files take so many bytes more grows. What an idle guest writes in that time (its log, times of last access) is less.
const GROWTH: u64 = 1 << 20;
/// Of those that grow only those are paused that grow by at least this part of what the fastest does.
const SLOWEST_PART: u64 = 4;

/// Lives as long as the server.
pub(crate) async fn keep_room(shared: Arc<Shared>) {
    let mut before = HashMap::new();
    let (mut interval, mut looks) = (LOOK_EVERY, 0);
    loop {
        tokio::select! {
            () = shared.ending.cancelled() => return,
            () = shared.ports.clock.sleep(interval) => {}
        }
        let room = match shared.room().await {
            Ok(room) => room,
            Err(error) => {
                tracing::warn!(%error, "the free space cannot be told");
                continue;
            }
        };
        if room == Room::Enough {
            before.clear();
            (interval, looks) = (LOOK_EVERY, 0);
            continue;
        }
        interval = LOOK_CLOSELY_EVERY;
        let now = disk_usage(&shared).await;
        if room == Room::Short {
            stop_growing(&shared, &before, &now);
        }
        if looks % COUNTED_LOOKS == 0 {
            before = now;
        }
        looks += 1;
    }
}

/// Bytes that the files of running VMs take.
async fn disk_usage(shared: &Shared) -> HashMap<VmId, u64> {
    let mut now = HashMap::new();
    for handle in shared.registry.all() {
        // Released before the disk is asked: whoever publishes must not wait for it.
        let (id, phase) = {
            let snapshot = handle.published.borrow();
            (snapshot.record.id.clone(), snapshot.record.phase())
        };
        if phase == Phase::Running
            // One that is being removed has nothing to tell.
            && let Ok(bytes) = shared.ports.vm_storage.vm_disk_usage(&id).await
        {
            now.insert(id, bytes);
        }
    }
    now
}

/// Pauses those that grow.
fn stop_growing(shared: &Shared, before: &HashMap<VmId, u64>, now: &HashMap<VmId, u64>) {
    let growing = growing(before, now);
    for handle in shared.registry.all() {
        let id = handle.published.borrow().record.id.clone();
        let Some(grown) = growing.get(&id) else { continue };
        tracing::warn!(vm = %id, grown, "the disk is nearly full and this VM grows: it is paused until there is room");
        // A busy one is asked at the next look again.
        let _ = handle.commands.try_send(Order { command: Command::MakeRoom, cause: handle.cause.clone() });
    }
}

/// Those that have grown most, and by how many bytes. One that was not counted before is not known to grow.
fn growing(before: &HashMap<VmId, u64>, now: &HashMap<VmId, u64>) -> HashMap<VmId, u64> {
    let grown = |(id, now): (&VmId, &u64)| Some((id.clone(), now.saturating_sub(*before.get(id)?)));
    let mut grown: HashMap<VmId, u64> = now.iter().filter_map(grown).collect();
    let fastest = grown.values().copied().max().unwrap_or(0);
    grown.retain(|_, grown| *grown >= GROWTH.max(fastest / SLOWEST_PART));
    grown
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn sizes(sizes: [u64; 4]) -> HashMap<VmId, u64> {
        (0..).zip(sizes).map(|(number, size)| (VmId::from_parts(number, number), size)).collect()
    }

    #[test]
    fn the_fastest_are_stopped_and_not_those_that_write_little() {
        let before = sizes([500 * MIB, MIB, 70 * MIB, 0]);
        let now = sizes([500 * MIB, 65 * MIB, 72 * MIB, 40 * MIB]);
        let mut stopped: Vec<u64> = growing(&before, &now).into_values().collect();
        stopped.sort_unstable();
        assert_eq!(stopped, [40 * MIB, 64 * MIB]);
        // When only the slow one is left it is the one that fills the disk.
        assert_eq!(growing(&now, &sizes([500 * MIB, 65 * MIB, 74 * MIB, 40 * MIB])).len(), 1);
    }

    #[test]
    fn one_that_idles_shrinks_or_was_not_counted_is_left_alone() {
        let before = sizes([5 * MIB, 9 * MIB, 0, 0]);
        let mut now = sizes([5 * MIB + 1000, MIB, 0, 0]);
        now.insert(VmId::from_parts(77, 77), 900 * MIB);
        assert!(growing(&before, &now).is_empty());
    }
}
