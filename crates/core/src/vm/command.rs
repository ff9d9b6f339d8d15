//! Commands to a VM's actor, and its answers.

use std::sync::Arc;
use std::time::Duration;

use microvm_ports::Progress;
use microvm_ports::branch::BranchTimes;
use microvm_ports::snapshot::BranchSource;
use microvm_ports::storage::LostDisks;
use microvm_types::lifecycle::{Work, permits};
use microvm_types::snapshot::SnapshotPurpose;
use microvm_types::vm::{NewVm, VmRecord};
use microvm_types::{Name, Phase, SnapshotId};
use tokio::sync::oneshot;

use super::change::VmChange;
use super::shared::Shared;
use super::standby::StandbyVmm;
use crate::error::ServiceError;
use crate::events::Cause;
use crate::launch::Planned;
use crate::state::Snapshot;
use crate::undo::{self, Undo};

pub(crate) type Reply = oneshot::Sender<Result<(), ServiceError>>;

/// One command to a VM.
pub(crate) enum Command {
    /// `cold`: a hibernated VM boots from its disk instead of resuming.
    Start {
        cold: bool,
        reply: Reply,
    },
    Stop {
        force: bool,
        grace: Duration,
        reply: Reply,
    },
    /// Stop it after `delay`, unless somebody starts it before.
    PlanShutdown {
        delay: Duration,
        force: bool,
        reply: Reply,
    },
    Pause(Reply),
    /// Pause it for whoever acquires it from its pool.
    PutIntoPool(Reply),
    Resume(Reply),
    /// Let it go on for whoever wants its guest, if it rests until then. What was paused by hand meanwhile stays so.
    Wake(Reply),
    Delete {
        lost: LostDisks,
        reply: Reply,
    },
    ResizeMemory {
        memory_mib: u32,
        reply: Reply,
    },
    Fork {
        count: usize,
        reply: oneshot::Sender<Result<ForkPoint, ServiceError>>,
    },
    Snapshot {
        order: SnapshotOrder,
        reply: oneshot::Sender<Result<Written, ServiceError>>,
    },
    Rollback {
        source: BranchSource,
        epoch: u64,
        memory_now_mib: Option<u32>,
        reply: Reply,
    },
    Rehearse(Reply),
    Claim {
        claim: Claim,
        reply: Reply,
    },
    Hibernate(Reply),
    /// Change its name, labels, metadata and limits.
    Change {
        change: Box<VmChange>,
        reply: Reply,
    },
    /// Pause it if it runs: the disk of the host is nearly full.
    MakeRoom,
}

/// A command with its cause.
pub(crate) struct Order {
    pub(crate) command: Command,
    pub(crate) cause: Cause,
}

/// Begin of an actor's life.
pub(crate) enum Beginning {
    /// A new VM: make its files, and start it if asked.
    Create { start: bool, planned: Box<Planned>, reply: Reply },
    /// A VM found in the store after a restart of the server.
    Adopt,
}

/// A running VM's state, ready for children.
pub(crate) struct ForkPoint {
    pub(crate) source: BranchSource,
    /// The VM as it was then.
    pub(crate) record: VmRecord,
    pub(crate) times: BranchTimes,
    /// Bytes of memory that differ from what the VM was launched with.
    pub(crate) changed_bytes: u64,
    /// VMMs for the first children.
    pub(crate) standby: Vec<StandbyVmm>,
}

/// Order for a snapshot.
pub(crate) struct SnapshotOrder {
    pub(crate) id: SnapshotId,
    pub(crate) name: Name,
    pub(crate) description: String,
    pub(crate) purpose: SnapshotPurpose,
    /// Whole in itself instead of building on its parent.
    pub(crate) full: bool,
    /// Leave the VM paused: it is going to be deleted.
    pub(crate) stay_paused: bool,
    pub(crate) progress: Progress,
    /// Told as soon as the VM goes on, while the snapshot is being written.
    pub(crate) taken: oneshot::Sender<BranchTimes>,
}

/// A snapshot that was written. Dropping it removes the snapshot again: whoever asked for it went away.
pub(crate) type Written = Undo<(Arc<Shared>, Snapshot)>;

/// Guards a snapshot that was written.
pub(crate) fn written(shared: &Arc<Shared>, snapshot: Snapshot) -> Written {
    undo::unless_kept((Arc::clone(shared), snapshot), |(shared, Snapshot { record, .. })| {
        let snapshots = Arc::clone(&shared.ports.snapshots);
        shared.actors.spawn(async move {
            if let Err(error) = snapshots.remove_snapshot(&record.id).await {
                tracing::warn!(snapshot = %record.id, %error, "a snapshot that nobody waited for could not be removed");
            }
        });
    })
}

/// New owner's name and wishes for a VM that waits in a pool.
pub(crate) struct Claim {
    pub(crate) name: Name,
    pub(crate) vm: NewVm,
}

/// Refuses a branch where the table does not permit it.
pub(crate) fn check_branchable(phase: Phase) -> Result<(), ServiceError> {
    permits(phase, Work::Branch).map_err(|denied| ServiceError::NotRunning(denied.phase))
}
