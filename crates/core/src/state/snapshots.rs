//! All snapshots by id and name.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError};

use microvm_ports::snapshot::SnapshotInfo;
use microvm_types::snapshot::{SnapshotPurpose, SnapshotRecord};
use microvm_types::{Name, SnapshotId, VmId};

use crate::error::ServiceError;

/// One snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// Record that core wrote.
    pub record: SnapshotRecord,
    /// Description that the store read from its files.
    pub info: SnapshotInfo,
}

/// The index. Names are reserved before a snapshot is written, so that two at once cannot have the same.
#[derive(Debug, Default)]
pub(crate) struct SnapshotIndex(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    snapshots: BTreeMap<SnapshotId, Snapshot>,
    /// Names of tenants that are taken before their snapshots are there.
    reserved: BTreeSet<(String, Name)>,
    /// Time of the newest id.
    newest_ms: u64,
}

impl SnapshotIndex {
    fn with<T>(&self, work: impl FnOnce(&mut Inner) -> T) -> T {
        work(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// A new id that sorts after all others, also when the host's clock was set back: what is oldest goes first.
    pub(crate) fn fresh_id(&self, now_ms: i64, random: u64) -> SnapshotId {
        self.with(|inner| {
            inner.newest_ms = now_ms.unsigned_abs().max(inner.newest_ms.saturating_add(1));
            SnapshotId::from_parts(inner.newest_ms, random)
        })
    }

    /// Takes a name of a tenant for a snapshot that is going to be written.
    pub(crate) fn reserve(&self, tenant: &str, name: &Name) -> Result<(), ServiceError> {
        self.with(|inner| {
            let key = (tenant.to_owned(), name.clone());
            let same = |record: &SnapshotRecord| record.tenant == tenant && record.name == *name;
            if inner.reserved.contains(&key) || inner.snapshots.values().any(|found| same(&found.record)) {
                return Err(ServiceError::SnapshotNameTaken(name.clone()));
            }
            inner.reserved.insert(key);
            Ok(())
        })
    }

    /// Gives a reserved name back.
    pub(crate) fn release(&self, tenant: &str, name: &Name) {
        self.with(|inner| inner.reserved.remove(&(tenant.to_owned(), name.clone())));
    }

    pub(crate) fn insert(&self, snapshot: Snapshot) {
        self.with(|inner| {
            inner.reserved.remove(&(snapshot.record.tenant.clone(), snapshot.record.name.clone()));
            inner.newest_ms = inner.newest_ms.max(snapshot.record.id.time_ms());
            inner.snapshots.insert(snapshot.record.id.clone(), snapshot);
        });
    }

    /// Replaces the description of a snapshot whose files have changed.
    pub(crate) fn renew(&self, info: SnapshotInfo) {
        self.with(|inner| {
            if let Some(snapshot) = inner.snapshots.get_mut(&info.id) {
                snapshot.info = info;
            }
        });
    }

    pub(crate) fn remove(&self, id: &SnapshotId) {
        self.with(|inner| inner.snapshots.remove(id));
    }

    /// Finds a snapshot of a tenant by id or name.
    pub(crate) fn find(&self, tenant: &str, reference: &str) -> Result<Snapshot, ServiceError> {
        self.with(|inner| {
            let owned = |found: &&Snapshot| found.record.tenant == tenant;
            let by_id =
                reference.parse().ok().and_then(|id: SnapshotId| inner.snapshots.get(&id)).filter(owned);
            let named = |found: &&Snapshot| owned(found) && found.record.name.as_str() == reference;
            by_id.or_else(|| inner.snapshots.values().find(named)).cloned()
        })
        .ok_or_else(|| microvm_ports::StorageError::UnknownSnapshot(reference.to_owned()).into())
    }

    /// Finds a snapshot by its id, whoever owns it: for the server's own work.
    pub(crate) fn by_id(&self, id: &SnapshotId) -> Result<Snapshot, ServiceError> {
        self.with(|inner| inner.snapshots.get(id).cloned())
            .ok_or_else(|| microvm_ports::StorageError::UnknownSnapshot(id.to_string()).into())
    }

    /// All of a tenant, oldest first.
    pub(crate) fn of(&self, tenant: &str) -> Vec<Snapshot> {
        self.with(|inner| {
            inner.snapshots.values().filter(|found| found.record.tenant == tenant).cloned().collect()
        })
    }

    /// All of all tenants, oldest first.
    pub(crate) fn all(&self) -> Vec<Snapshot> {
        self.with(|inner| inner.snapshots.values().cloned().collect())
    }

    /// The golden snapshots of a key, oldest first.
    pub(crate) fn goldens(&self, key: &str) -> Vec<Snapshot> {
        self.with(|inner| {
            let is_golden = |found: &&Snapshot| match &found.record.purpose {
                SnapshotPurpose::Golden { key: own } => own == key,
                SnapshotPurpose::User | SnapshotPurpose::Hibernation => false,
            };
            inner.snapshots.values().filter(is_golden).cloned().collect()
        })
    }

    /// Those taken of one VM by somebody's wish, oldest first.
    pub(crate) fn of_vm(&self, vm: &VmId) -> Vec<Snapshot> {
        let by_wish =
            |found: &&Snapshot| found.record.vm == *vm && found.record.purpose == SnapshotPurpose::User;
        self.with(|inner| inner.snapshots.values().filter(by_wish).cloned().collect())
    }

    /// True if other snapshots build on it.
    pub(crate) fn has_children(&self, id: &SnapshotId) -> bool {
        self.with(|inner| inner.snapshots.values().any(|found| found.info.parent.as_ref() == Some(id)))
    }
}
