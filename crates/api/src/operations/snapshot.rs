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
    List = "snapshot.list", Get "/snapshots", SnapshotRead, Safe, Offered, ((), ListSnapshots) Nothing => Json<SnapshotList>;

    /// Count all snapshots
    Statistics = "snapshot.statistics", Get "/snapshots/statistics", SnapshotRead, Safe, Offered, ((), NoQuery) Nothing => Json<SnapshotStatistics>;

    /// Remove old snapshots
    ///
    /// With none of `days_old`, `older_than_seconds` and `keep` those go that go by themselves: without a name of their own, and
    /// older than 30 days (a setting of the server).
    CleanUp = "snapshot.clean_up", Post "/snapshots/cleanup", SnapshotDelete, Never, Withheld, ((), CleanUpSnapshots) Nothing => Json<Cleaned>;

    /// Import an exported snapshot
    ///
    /// `path` is a file on the server's host, and `name` has to be given.
    Import = "snapshot.import", Post "/snapshots/import", SnapshotCreate, Never, Withheld, ((), NoQuery) Json<SnapshotFile> => Lines<ProgressLine>;

    /// List the snapshots of a VM
    ///
    /// The header `x-unreadable` says how many more there are that cannot be read.
    OfVm = "snapshot.list_of_vm", Get "/snapshots/{vm}", SnapshotRead, Safe, Withheld, (VmRef, NoQuery) Nothing => Array<Snapshot>;

    /// Take a snapshot of a running VM
    ///
    /// The VM goes on. With `wait` false the answer comes as soon as it does, and writing goes on.
    Create = "snapshot.create", Post "/snapshots/{vm}", SnapshotCreate, Never, Offered, (VmRef, TakeSnapshot) Json<CreateSnapshot> => CreatedOrAccepted<Snapshot, BegunSnapshot>;

    /// Show a snapshot
    Get = "snapshot.get", Get "/snapshots/{vm}/{snapshot}", SnapshotRead, Safe, Offered, ((SnapshotVm, SnapshotRef), NoQuery) Nothing => Json<Snapshot>;

    /// Remove a snapshot
    Remove = "snapshot.remove", Delete "/snapshots/{vm}/{snapshot}", SnapshotDelete, Never, Offered, ((SnapshotVm, SnapshotRef), RemoveSnapshot) Nothing => Nothing;

    /// Restore a snapshot
    ///
    /// Puts its VM back in time, or with `in_place` false makes new VMs of it.
    Restore = "snapshot.restore", Post "/snapshots/{vm}/{snapshot}/restore", SnapshotCreate, Never, Offered, ((SnapshotVm, SnapshotRef), NoQuery) LongJson<RestoreSnapshot> => Json<Restored>;

    /// Verify a snapshot
    ///
    /// Reads every byte of it.
    Verify = "snapshot.verify", Post "/snapshots/{vm}/{snapshot}/verify", SnapshotRead, Safe, Offered, ((SnapshotVm, SnapshotRef), NoQuery) Nothing => Json<Verification>;

    /// Export a snapshot
    ///
    /// To a file on the server's host.
    Export = "snapshot.export", Post "/snapshots/{vm}/{snapshot}/export", SnapshotRead, Never, Withheld, ((SnapshotVm, SnapshotRef), NoQuery) Json<SnapshotFile> => Lines<ProgressLine>;
}
