//! Planned faults, by operation.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Semaphore;

/// An operation of a port that can be made to fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Operation {
    /// `Hypervisor::launch`
    Launch,
    /// `Hypervisor::launch` when it loads a state
    Incoming,
    /// `Hypervisor::prepare`
    Prepare,
    /// `Brancher::branch`
    Branch,
    /// `Hypervisor::adopt`
    Adopt,
    /// `Hypervisor::sweep`
    Sweep,
    /// `Machine::resume`
    Resume,
    /// `Machine::pause`
    Pause,
    /// `Machine::kill`
    Kill,
    /// `GuestConnector::connect`
    Connect,
    /// `Guest::identify`
    Identify,
    /// `Guest::tell_time`
    TellTime,
    /// `Guest::ping`
    Ping,
    /// `Guest::exec`
    Exec,
    /// `Guest::pull_root`
    PullRoot,
    /// `Guest::pull_layer`
    PullLayer,
    /// `Guest::processes`
    Processes,
    /// `Guest::shutdown`
    Shutdown,
    /// `VmStorage::create_vm_files` and `SnapshotStore::create_vm_files_from`
    CreateFiles,
    /// `VmStorage::vm_files`
    FindFiles,
    /// `VmStorage::finish_vm_files`
    FinishFiles,
    /// `VmStorage::keep_record`
    KeepRecord,
    /// `VmStorage::zero_memory`
    ZeroMemory,
    /// `VolumeStore::create_volume`
    CreateVolume,
    /// `VmStorage::remove_vm_files`
    RemoveFiles,
    /// `VmStorage::write_back`
    WriteBack,
    /// `SnapshotStore::prepare_overlays`
    PrepareOverlays,
    /// `SnapshotStore::write_snapshot`
    WriteSnapshot,
    /// `SnapshotStore::fork_point`
    ForkPoint,
    /// `SnapshotStore::snapshot_source`
    SnapshotSource,
    /// `SnapshotStore::reset_vm_files`
    ResetFiles,
    /// `SnapshotStore::remove_snapshot`
    RemoveSnapshot,
    /// `ImageStore::image`
    Image,
    /// `KernelStore::kernel`
    Kernel,
    /// `StateStore::insert_vm`
    Insert,
    /// `StateStore::update_vm`
    Update,
    /// `StateStore::delete_vm`
    Delete,
    /// `StateStore::vms`
    List,
}

/// Fault in place of the operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// It fails and changes nothing.
    Fail,
    /// It never returns: for time-outs, and for callers that go away.
    Hang,
    /// It does its work and then never returns: for crashes between a deed and its answer.
    HangAfterwards,
    /// It waits until the script lets it go on, and does its work then.
    Hold,
}

/// The faults still to come, per operation; clones share them.
#[derive(Debug, Clone)]
pub struct Script {
    planned: Arc<Mutex<Planned>>,
    /// A permit for each operation that may go on.
    gate: Arc<Semaphore>,
}

impl Default for Script {
    fn default() -> Self {
        Self { planned: Arc::default(), gate: Arc::new(Semaphore::new(0)) }
    }
}

#[derive(Debug, Default)]
struct Planned {
    faults: HashMap<Operation, VecDeque<Option<Fault>>>,
    calls: HashMap<Operation, u64>,
}

/// Answer of the script to an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    Go,
    Fail,
    GoThenHang,
}

impl Script {
    /// The next call of `operation` that has no fault yet gets this one.
    pub fn next(&self, operation: Operation, fault: Fault) {
        self.after(operation, 0, fault);
    }

    /// `good` more calls of `operation` go well, then one gets this fault.
    pub fn after(&self, operation: Operation, good: usize, fault: Fault) {
        let mut planned = self.planned.lock().unwrap_or_else(PoisonError::into_inner);
        let queue = planned.faults.entry(operation).or_default();
        queue.extend(std::iter::repeat_n(None, good));
        queue.push_back(Some(fault));
    }

    /// Lets one operation go on that is held, or the next one that is to be.
    pub fn release(&self) {
        self.gate.add_permits(1);
    }

    /// Forgets all faults that have not happened yet.
    pub fn clear(&self) {
        self.planned.lock().unwrap_or_else(PoisonError::into_inner).faults.clear();
    }

    /// Number of times that `operation` was called, faults included.
    #[must_use]
    pub fn calls(&self, operation: Operation) -> u64 {
        let planned = self.planned.lock().unwrap_or_else(PoisonError::into_inner);
        planned.calls.get(&operation).copied().unwrap_or(0)
    }

    /// Number of times that each operation was called, faults included.
    #[must_use]
    pub fn all_calls(&self) -> HashMap<Operation, u64> {
        self.planned.lock().unwrap_or_else(PoisonError::into_inner).calls.clone()
    }

    fn take(&self, operation: Operation) -> Option<Fault> {
        let mut planned = self.planned.lock().unwrap_or_else(PoisonError::into_inner);
        *planned.calls.entry(operation).or_default() += 1;
        planned.faults.get_mut(&operation).and_then(VecDeque::pop_front).flatten()
    }

    /// Counts a call and says what becomes of it; does not return if it is to hang.
    pub(crate) async fn ask(&self, operation: Operation) -> Verdict {
        match self.take(operation) {
            None => Verdict::Go,
            Some(Fault::Fail) => Verdict::Fail,
            Some(Fault::HangAfterwards) => Verdict::GoThenHang,
            Some(Fault::Hang) => std::future::pending().await,
            Some(Fault::Hold) => {
                // Nothing closes the gate.
                if let Ok(permit) = self.gate.acquire().await {
                    permit.forget();
                }
                Verdict::Go
            }
        }
    }
}

impl Verdict {
    /// To be awaited when the work is done.
    pub(crate) async fn finish(self) {
        if self == Self::GoThenHang {
            std::future::pending::<()>().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn faults_come_in_the_order_they_were_planned() {
        let script = Script::default();
        script.after(Operation::Launch, 1, Fault::Fail);
        script.next(Operation::Launch, Fault::HangAfterwards);
        let mut verdicts = Vec::new();
        for _ in 0..4 {
            verdicts.push(script.ask(Operation::Launch).await);
        }
        assert_eq!(verdicts, [Verdict::Go, Verdict::Fail, Verdict::GoThenHang, Verdict::Go]);
        assert_eq!((script.calls(Operation::Launch), script.calls(Operation::Pause)), (4, 0));
    }
}
