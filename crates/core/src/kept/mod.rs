//! Snapshots that were taken: listed, verified, removed, carried to other hosts.

mod absorb;
mod import;
mod janitor;
mod load;
pub(crate) mod names;

use std::time::Duration;

use camino::Utf8Path;
use microvm_ports::Progress;
use microvm_ports::snapshot::Damage;
use microvm_types::snapshot::{SnapshotPurpose, SnapshotRecord};
use microvm_types::{Name, OperationName, Unreadable, VmId, VmRef};

pub(crate) use self::absorb::{absorb, drop_oldest, remove};
pub(crate) use self::janitor::keep_clean;
pub(crate) use self::load::{load, remove_stray_sleeps};
use self::names::is_named;
use crate::context::Context;
use crate::error::ServiceError;
use crate::state::Snapshot;

/// Which snapshots to list; every condition must hold.
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
    /// How many somebody asked for.
    pub count: usize,
    /// How many are golden.
    pub golden: usize,
    /// Bytes on disk.
    pub bytes: u64,
    /// VMs (living or gone) that have any.
    pub vms: usize,
    /// When the oldest was taken, milliseconds since 1970-01-01T00:00:00Z.
    pub oldest_ms: Option<i64>,
    /// When the newest was taken, same unit.
    pub newest_ms: Option<i64>,
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

    /// Reads every byte of a snapshot; empty if nothing is wrong.
    ///
    /// # Errors
    /// Storage errors other than damage.
    pub async fn verify(&self, reference: &str, progress: Progress) -> Result<Vec<Damage>, ServiceError> {
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

    /// Removes those older than `older_than` and, per VM, all but the newest `keep`; never one that another VM's build on.
    /// Those that somebody named stay, and are not counted, unless `named`. Returns the names of those removed.
    ///
    /// # Errors
    /// Storage errors; what was removed until then stays removed.
    pub async fn prune(
        &self,
        keep: Option<usize>,
        older_than: Option<Duration>,
        named: bool,
    ) -> Result<Vec<Name>, ServiceError> {
        self.context.authorise(OperationName::SNAPSHOT_CLEAN_UP)?;
        let now = self.context.shared.ports.clock.now_ms();
        let age_ms = older_than.map(|age| i64::try_from(age.as_millis()).unwrap_or(i64::MAX));
        let mut all = self.matching(&SnapshotFilter::default());
        all.retain(|one| named || !is_named(&one.record));
        let mut removed = Vec::new();
        // Newest first: a child that goes as well needs nothing written into it.
        for snapshot in all.iter().rev() {
            let too_old = age_ms.is_some_and(|age| now.saturating_sub(snapshot.record.created_ms) > age);
            let newer = all.iter().filter(|other| {
                other.record.vm == snapshot.record.vm && other.record.id > snapshot.record.id
            });
            let too_many = keep.is_some_and(|keep| newer.count() >= keep);
            if (too_old || too_many) && absorb::may_go(&self.context.shared, snapshot) {
                absorb(&self.context.shared, snapshot).await?;
                removed.push(snapshot.record.name.clone());
            }
        }
        if !removed.is_empty() {
            self.context.shared.litter.notify_one();
        }
        Ok(removed)
    }

    /// All snapshots together.
    ///
    /// # Errors
    /// [`ServiceError::Forbidden`].
    pub fn statistics(&self) -> Result<SnapshotStatistics, ServiceError> {
        self.context.authorise(OperationName::SNAPSHOT_STATISTICS)?;
        let all = self.all();
        let by_wish: Vec<&Snapshot> =
            all.iter().filter(|one| one.record.purpose == SnapshotPurpose::User).collect();
        let mut vms: Vec<&VmId> = by_wish.iter().map(|one| &one.record.vm).collect();
        vms.dedup();
        vms.sort();
        vms.dedup();
        Ok(SnapshotStatistics {
            count: by_wish.len(),
            golden: all
                .iter()
                .filter(|one| matches!(one.record.purpose, SnapshotPurpose::Golden { .. }))
                .count(),
            bytes: all.iter().map(|one| one.info.own_bytes).sum(),
            vms: vms.len(),
            oldest_ms: by_wish.first().map(|one| one.record.created_ms),
            newest_ms: by_wish.last().map(|one| one.record.created_ms),
        })
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
