//! Snapshots that were taken: listed, verified, removed, carried to other hosts.

mod absorb;
mod import;
mod janitor;
mod load;
pub(crate) mod names;

use std::collections::BTreeMap;
use std::time::Duration;

use camino::Utf8Path;
use microvm_ports::snapshot::Verified;
use microvm_ports::{Progress, StorageError};
use microvm_types::snapshot::{SnapshotPurpose, SnapshotRecord};
use microvm_types::{Name, OperationName, SnapshotId, Unreadable, VmId, VmRef};

pub(crate) use self::absorb::{absorb, drop_oldest, remove};
pub(crate) use self::janitor::{KEEP_MEMORY_BYTES, keep_clean, keep_young};
pub(crate) use self::load::{load, remove_stray_sleeps};
use self::names::is_named;
use crate::context::Context;
use crate::error::ServiceError;
use crate::state::Snapshot;

/// Filter of a list of snapshots; every condition must hold.
#[derive(Debug, Clone, Default)]
pub struct SnapshotFilter {
    /// Taken of this VM.
    pub vm: Option<VmId>,
    /// Golden ones too.
    pub golden: bool,
}

/// All snapshots together.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SnapshotStatistics {
    /// Number of snapshots that users asked for.
    pub count: usize,
    /// Their bytes on disk.
    pub bytes: u64,
    /// Number of golden snapshots.
    pub golden: usize,
    /// Their bytes on disk.
    pub golden_bytes: u64,
    /// Bytes on disk of the memory of hibernated VMs.
    pub hibernation_bytes: u64,
    /// Those that somebody asked for, by VM (living or gone).
    pub vms: BTreeMap<VmId, SnapshotsOfVm>,
    /// When the oldest was taken, milliseconds since 1970-01-01T00:00:00Z.
    pub oldest_ms: Option<i64>,
    /// When the newest was taken, same unit.
    pub newest_ms: Option<i64>,
}

/// Snapshots of one VM that somebody asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotsOfVm {
    /// Name of the VM when the newest was taken.
    pub name: Name,
    /// Number of snapshots.
    pub count: usize,
    /// Their bytes on disk.
    pub bytes: u64,
}

/// Outcome of [`Snapshots::prune`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pruned {
    /// Names of those removed.
    pub removed: Vec<Name>,
    /// Those that were to go and could not be removed, with the reason of each.
    pub kept: Vec<Unreadable>,
}

/// Snapshots that were taken.
#[derive(Debug, Clone)]
pub struct Snapshots {
    context: Context,
}

impl Snapshots {
    pub(crate) fn new(context: &Context) -> Self {
        Self { context: context.clone() }
    }

    fn find(&self, reference: &str) -> Result<Snapshot, ServiceError> {
        self.context.shared.snapshots.find(&self.context.caller.tenant, reference)
    }

    fn all(&self) -> Vec<Snapshot> {
        self.context.shared.snapshots.of(&self.context.caller.tenant)
    }

    /// Snapshots that match, oldest first.
    ///
    /// # Errors
    /// [`ServiceError::Forbidden`].
    pub fn list(&self, filter: &SnapshotFilter) -> Result<Vec<Snapshot>, ServiceError> {
        self.context.authorise(OperationName::SNAPSHOT_LIST)?;
        Ok(self.matching(filter))
    }

    fn matching(&self, filter: &SnapshotFilter) -> Vec<Snapshot> {
        let mut all = self.all();
        all.retain(|snapshot| {
            filter.vm.as_ref().is_none_or(|vm| snapshot.record.vm == *vm)
                && match snapshot.record.purpose {
                    SnapshotPurpose::User => true,
                    SnapshotPurpose::Golden { .. } => filter.golden,
                    SnapshotPurpose::Hibernation => false,
                }
        });
        all
    }

    /// One snapshot by id or name.
    ///
    /// # Errors
    /// If there is none.
    pub fn get(&self, reference: &str) -> Result<Snapshot, ServiceError> {
        self.context.authorise(OperationName::SNAPSHOT_GET)?;
        self.find(reference)
    }

    /// Reads every byte of a snapshot.
    ///
    /// # Errors
    /// Storage errors other than damage.
    pub async fn verify(&self, reference: &str, progress: Progress) -> Result<Verified, ServiceError> {
        self.context.authorise(OperationName::SNAPSHOT_VERIFY)?;
        let id = self.find(reference)?.record.id;
        Ok(self.context.shared.ports.snapshots.verify_snapshot(&id, progress).await?)
    }

    /// Removes a snapshot; with `cascade` also those that build on it, which otherwise keep it.
    ///
    /// # Errors
    /// `InUse` if others build on it.
    pub async fn remove(&self, reference: &str, cascade: bool) -> Result<usize, ServiceError> {
        self.context.authorise(OperationName::SNAPSHOT_REMOVE)?;
        let snapshot = self.find(reference)?;
        remove(&self.context.shared, snapshot, reference, cascade).await
    }

    /// Removes a snapshot that cannot be read, by its id; `false` if no such snapshot of the caller's tenant is known. A file
    /// that was repaired meanwhile goes as well.
    ///
    /// # Errors
    /// `InUse` if others build on it.
    pub async fn remove_unreadable(&self, id: &str) -> Result<bool, ServiceError> {
        self.context.authorise(OperationName::SNAPSHOT_REMOVE)?;
        let shared = &self.context.shared;
        let known = shared.unreadable.snapshots.of(&self.context.caller.tenant);
        let Ok(id) = id.parse::<SnapshotId>() else { return Ok(false) };
        if !known.iter().any(|one| one.name == id.as_str()) {
            return Ok(false);
        }
        // Only the record of the VM tells, and the memory may be whole: a copy may have been put back meanwhile.
        let records = shared.registry.all().into_iter().map(|vm| vm.record());
        if let Some(sleeper) = records.into_iter().find(|record| record.life.asleep() == Some(&id)) {
            let users = format!(
                "the VM `{}`, which sleeps on it: give up its memory or delete it first",
                sleeper.name
            );
            return Err(StorageError::InUse { name: format!("the snapshot `{id}`"), users }.into());
        }
        shared.ports.snapshots.remove_snapshot(&id).await?;
        shared.unreadable.snapshots.remove(id.as_str());
        shared.litter.notify_one();
        Ok(true)
    }

    /// Removes those older than `older_than` and, per VM, all but the newest `keep`; never one that another VM's build on.
    /// Those that somebody named stay, and are not counted, unless `named`. One that cannot be removed keeps no other.
    ///
    /// # Errors
    /// [`ServiceError::Forbidden`].
    pub async fn prune(
        &self,
        keep: Option<usize>,
        older_than: Option<Duration>,
        named: bool,
    ) -> Result<Pruned, ServiceError> {
        self.context.authorise(OperationName::SNAPSHOT_CLEAN_UP)?;
        let now = self.context.shared.ports.clock.now_ms();
        let age_ms = older_than.map(|age| i64::try_from(age.as_millis()).unwrap_or(i64::MAX));
        // Golden snapshots and sleeping memory are never pruned: the server looks after them.
        let mut all = self.matching(&SnapshotFilter::default());
        // Before the count: named ones do not use up the places of the others.
        all.retain(|one| named || !is_named(&one.record));
        let mut pruned = Pruned::default();
        // Newest first: a child that goes as well needs nothing written into it.
        for snapshot in all.iter().rev() {
            let too_old = age_ms.is_some_and(|age| now.saturating_sub(snapshot.record.created_ms) > age);
            let newer = all.iter().filter(|other| {
                other.record.vm == snapshot.record.vm && other.record.id > snapshot.record.id
            });
            let too_many = keep.is_some_and(|keep| newer.count() >= keep);
            if (too_old || too_many) && absorb::may_go(&self.context.shared, snapshot) {
                let name = snapshot.record.name.clone();
                match absorb(&self.context.shared, snapshot).await {
                    Ok(()) => pruned.removed.push(name),
                    Err(error) => pruned.kept.push(Unreadable::new(name.as_str(), error)),
                }
            }
        }
        if !pruned.removed.is_empty() {
            self.context.shared.litter.notify_one();
        }
        Ok(pruned)
    }

    /// Removes those without a name of their own that are older than the server's age for them, as it does by itself once a day.
    ///
    /// # Errors
    /// [`ServiceError::Forbidden`].
    pub async fn prune_old(&self) -> Result<Pruned, ServiceError> {
        match self.context.shared.settings.unnamed_snapshot_age {
            Some(age) => self.prune(None, Some(age), false).await,
            None => {
                self.context.authorise(OperationName::SNAPSHOT_CLEAN_UP)?;
                Ok(Pruned::default())
            }
        }
    }

    /// All snapshots together.
    ///
    /// # Errors
    /// [`ServiceError::Forbidden`].
    pub fn statistics(&self) -> Result<SnapshotStatistics, ServiceError> {
        self.context.authorise(OperationName::SNAPSHOT_STATISTICS)?;
        let mut found = SnapshotStatistics::default();
        // Oldest first.
        for Snapshot { record, info } in self.all() {
            match record.purpose {
                SnapshotPurpose::Golden { .. } => {
                    found.golden += 1;
                    found.golden_bytes += info.own_bytes;
                    continue;
                }
                SnapshotPurpose::Hibernation => {
                    found.hibernation_bytes += info.own_bytes;
                    continue;
                }
                SnapshotPurpose::User => {}
            }
            found.count += 1;
            found.bytes += info.own_bytes;
            found.oldest_ms = found.oldest_ms.or(Some(record.created_ms));
            found.newest_ms = Some(record.created_ms);
            let empty = || SnapshotsOfVm { name: record.vm_name.clone(), count: 0, bytes: 0 };
            let of_vm = found.vms.entry(record.vm.clone()).or_insert_with(empty);
            of_vm.name = record.vm_name.clone();
            of_vm.count += 1;
            of_vm.bytes += info.own_bytes;
        }
        Ok(found)
    }

    /// Writes a snapshot, whole in itself, as one file of this host; returns its size in bytes.
    ///
    /// # Errors
    /// Storage errors.
    pub async fn export(
        &self,
        reference: &str,
        to: &Utf8Path,
        progress: Progress,
    ) -> Result<u64, ServiceError> {
        self.context.authorise(OperationName::SNAPSHOT_EXPORT)?;
        let id = self.find(reference)?.record.id;
        Ok(self.context.shared.ports.snapshots.export_snapshot(&id, to, progress).await?)
    }

    /// Snapshots of the caller's tenant that could not be read when the engine began; their files are left alone.
    ///
    /// # Errors
    /// [`ServiceError::Forbidden`].
    pub fn unreadable(&self) -> Result<Vec<Unreadable>, ServiceError> {
        self.context.authorise(OperationName::SNAPSHOT_LIST)?;
        Ok(self.context.shared.unreadable.snapshots.of(&self.context.caller.tenant))
    }

    /// A snapshot for an operation on it, and whether it is one of the VM `vm`, which may be gone.
    ///
    /// # Errors
    /// If there is none; [`ServiceError::Forbidden`] if the caller may not do the operation.
    pub fn find_of(
        &self,
        operation: OperationName,
        vm: &VmRef,
        reference: &str,
    ) -> Result<(Snapshot, bool), ServiceError> {
        self.context.authorise(operation)?;
        let found = self.find(reference)?;
        let record = &found.record;
        let living = || self.context.find(vm).is_ok_and(|handle| handle.record().id == record.vm);
        let is_of_vm =
            vm.as_id().is_some_and(|id| id == record.vm) || record.vm_name == *vm.as_name() || living();
        Ok((found, is_of_vm))
    }

    /// The id of a VM that has snapshots or lives, for an operation on its snapshots.
    ///
    /// # Errors
    /// [`ServiceError::UnknownVm`]; [`ServiceError::Forbidden`] if the caller may not do the operation.
    pub fn vm_of(&self, operation: OperationName, vm: &VmRef) -> Result<VmId, ServiceError> {
        self.context.authorise(operation)?;
        let error = match self.context.find(vm) {
            Ok(handle) => return Ok(handle.record().id),
            Err(error) => error,
        };
        let of_vm = |snapshot: &SnapshotRecord| {
            vm.as_id().is_some_and(|id| id == snapshot.vm) || snapshot.vm_name == *vm.as_name()
        };
        let filter = SnapshotFilter { vm: None, golden: true };
        let known = self.matching(&filter).into_iter().find(|snapshot| of_vm(&snapshot.record));
        known.map(|snapshot| snapshot.record.vm).ok_or(error)
    }
}
