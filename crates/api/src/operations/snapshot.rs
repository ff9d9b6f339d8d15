//! Snapshots.

use microvm_types::VmRef;

use crate::operation::{Array, CreatedOrAccepted, Json, Lines, LongJson, Nothing, SnapshotRef, SnapshotVm};
use crate::progress::ProgressLine;
use crate::queries::{CleanUpSnapshots, ListSnapshots, NoQuery, RemoveSnapshot, TakeSnapshot};
use crate::snapshot::{
    BegunSnapshot, Cleaned, CreateSnapshot, RestoreSnapshot, Restored, Snapshot, SnapshotFile, SnapshotList,
    SnapshotStatistics, Verification,
};

crate::rows! {
    /// List snapshots
    ///
    /// Oldest first. `unreadable` names those that are stored and cannot be read.
    List = SNAPSHOT_LIST, Get "/snapshots", Safe, Offered, ((), ListSnapshots) Nothing => Json<SnapshotList>;

    /// Count all snapshots
    Statistics = SNAPSHOT_STATISTICS, Get "/snapshots/statistics", Safe, Offered, ((), NoQuery) Nothing => Json<SnapshotStatistics>;

    /// Remove old snapshots
    ///
    /// With none of `days_old`, `older_than_seconds` and `keep` those go that go by themselves: without a name of their own, and
    /// older than 30 days (a setting of the server).
    CleanUp = SNAPSHOT_CLEAN_UP, Post "/snapshots/cleanup", Never, Withheld, ((), CleanUpSnapshots) Nothing => Json<Cleaned>;

    /// Import an exported snapshot
    ///
    /// `path` is a file on the server's host, and `name` has to be given.
    Import = SNAPSHOT_IMPORT, Post "/snapshots/import", Never, Withheld, ((), NoQuery) Json<SnapshotFile> => Lines<ProgressLine>;

    /// List the snapshots of a VM
    ///
    /// The header `x-unreadable` says how many more there are that cannot be read.
    OfVm = SNAPSHOT_LIST_OF_VM, Get "/snapshots/{vm}", Safe, Withheld, (VmRef, NoQuery) Nothing => Array<Snapshot>;

    /// Take a snapshot of a running VM
    ///
    /// The VM goes on; a hibernated one is woken for it. With `wait` false the answer comes as soon as it does, and writing goes on.
    Create = SNAPSHOT_CREATE, Post "/snapshots/{vm}", Never, Offered, (VmRef, TakeSnapshot) Json<CreateSnapshot> => CreatedOrAccepted<Snapshot, BegunSnapshot>;

    /// Show a snapshot
    Get = SNAPSHOT_GET, Get "/snapshots/{vm}/{snapshot}", Safe, Offered, ((SnapshotVm, SnapshotRef), NoQuery) Nothing => Json<Snapshot>;

    /// Remove a snapshot
    Remove = SNAPSHOT_REMOVE, Delete "/snapshots/{vm}/{snapshot}", Never, Offered, ((SnapshotVm, SnapshotRef), RemoveSnapshot) Nothing => Nothing;

    /// Restore a snapshot
    ///
    /// Puts its VM back in time, or with `in_place` false makes new VMs of it.
    Restore = SNAPSHOT_RESTORE, Post "/snapshots/{vm}/{snapshot}/restore", Never, Offered, ((SnapshotVm, SnapshotRef), NoQuery) LongJson<RestoreSnapshot> => Json<Restored>;

    /// Verify a snapshot
    ///
    /// Reads every byte of it.
    Verify = SNAPSHOT_VERIFY, Post "/snapshots/{vm}/{snapshot}/verify", Safe, Offered, ((SnapshotVm, SnapshotRef), NoQuery) Nothing => Json<Verification>;

    /// Export a snapshot
    ///
    /// To a file on the server's host.
    Export = SNAPSHOT_EXPORT, Post "/snapshots/{vm}/{snapshot}/export", Never, Withheld, ((SnapshotVm, SnapshotRef), NoQuery) Json<SnapshotFile> => Lines<ProgressLine>;
}
