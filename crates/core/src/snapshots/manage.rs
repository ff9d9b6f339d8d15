//! Listing, verifying, removing snapshots.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use camino::Utf8Path;
use microvm_ports::snapshot::{Damage, ImportLimits, SnapshotInfo};
use microvm_ports::{DocumentKind, Progress, StorageError};
use microvm_types::snapshot::{SnapshotPurpose, SnapshotRecord};
use microvm_types::template::{NetworkMode, Template};
use microvm_types::vm::LOCAL_TENANT;
use microvm_types::{Name, VmId};

use super::create::{NameGuard, is_named};
use super::golden::GOLDEN_LABEL;
use super::index::Snapshot;
use crate::admission;
use crate::error::ServiceError;
use crate::service::VmService;

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

impl VmService {
    /// Reads what is on disk. One that cannot be read is told and left alone.
    pub(crate) async fn load_snapshots(&self) -> Result<(), ServiceError> {
        let unreadable = &self.shared.unreadable.snapshots;
        let imported = self.shared.ports.store.documents(DocumentKind::ImportedSnapshot).await?.documents;
        let imported: BTreeMap<String, serde_json::Value> = imported.into_iter().collect();
        for found in self.shared.ports.snapshots.snapshots().await? {
            match found {
                Ok(info) => {
                    let of_file = info.description.record.clone();
                    let adapted = imported.get(info.id.as_str()).cloned();
                    match serde_json::from_value::<SnapshotRecord>(adapted.unwrap_or(of_file)) {
                        Ok(record) if record.id == info.id => {
                            self.shared.snapshots.insert(Snapshot { record, info });
                        }
                        // Only an imported one has the id of another inside: this one's import never ended, or
                        // its record is in another copy of the database. Which of them cannot be told.
                        Ok(_) => {
                            unreadable.add(
                                "snapshot",
                                info.id.as_str(),
                                "no record knows this imported snapshot",
                            );
                        }
                        Err(error) => {
                            let reason = format!("its description cannot be read: {error}");
                            unreadable.add("snapshot", info.id.as_str(), reason);
                        }
                    }
                }
                Err((id, damage)) => {
                    unreadable.add("snapshot", id.as_str(), format!("{}: {}", damage.part, damage.detail));
                }
            }
        }
        Ok(())
    }

    /// Removes what a VM slept on that is awake, or gone: a crash came between. Of a VM that has a disk and no record it
    /// cannot be told whether it sleeps: that stays.
    pub(crate) async fn remove_stray_sleeps(&self) {
        let disks = match self.shared.ports.vm_storage.vm_directories().await {
            Ok(disks) => disks,
            Err(error) => {
                tracing::warn!(%error, "the VMs that have a disk cannot be listed: whatever VMs slept on stays");
                return;
            }
        };
        for snapshot in self.shared.snapshots.all() {
            let record = &snapshot.record;
            let asleep = || {
                let handle = self.shared.registry.find(&record.vm.clone().into()).ok()?;
                let sleeps_on_it = handle.snapshot.borrow().record.life.asleep() == Some(&record.id);
                Some(sleeps_on_it)
            };
            if record.purpose == SnapshotPurpose::Hibernation
                && !asleep().unwrap_or_else(|| disks.contains(&record.vm))
                && let Err(error) = self.absorb(&snapshot).await
            {
                tracing::warn!(snapshot = %record.id, %error, "what a VM slept on could not be removed");
            }
        }
    }

    /// Snapshots that match, oldest first.
    #[must_use]
    pub fn snapshots(&self, filter: &SnapshotFilter) -> Vec<Snapshot> {
        let mut all = self.shared.snapshots.all();
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
    pub fn snapshot(&self, reference: &str) -> Result<Snapshot, ServiceError> {
        self.shared.snapshots.find(reference)
    }

    /// Reads every byte of a snapshot; empty if nothing is wrong.
    ///
    /// # Errors
    /// Storage errors other than damage.
    pub async fn verify_snapshot(
        &self,
        reference: &str,
        progress: Progress,
    ) -> Result<Vec<Damage>, ServiceError> {
        let id = self.shared.snapshots.find(reference)?.record.id;
        Ok(self.shared.ports.snapshots.verify_snapshot(&id, progress).await?)
    }

    /// Removes a snapshot; with `cascade` also those that build on it, which otherwise keep it.
    ///
    /// # Errors
    /// `InUse` if others build on it.
    pub async fn remove_snapshot(&self, reference: &str, cascade: bool) -> Result<usize, ServiceError> {
        let snapshot = self.shared.snapshots.find(reference)?;
        let mut doomed = vec![snapshot];
        if cascade {
            let mut next = 0;
            while let Some(parent) = doomed.get(next).map(|parent| parent.record.id.clone()) {
                let children = self.shared.snapshots.all();
                doomed
                    .extend(children.into_iter().filter(|child| child.info.parent.as_ref() == Some(&parent)));
                next += 1;
            }
        }
        // A VM sleeps on it: without it the VM could never wake.
        if let Some(sleep) = doomed.iter().find(|one| one.record.purpose == SnapshotPurpose::Hibernation) {
            let users = format!("the VM `{}`, which sleeps on it: start it first", sleep.record.vm_name);
            return Err(StorageError::InUse { name: reference.to_owned(), users }.into());
        }
        let count = doomed.len();
        // Children before parents: at no time does one stand without what it builds on.
        for snapshot in doomed.into_iter().rev() {
            self.shared.ports.snapshots.remove_snapshot(&snapshot.record.id).await?;
            self.shared.snapshots.remove(&snapshot.record.id);
        }
        self.shared.litter.notify_one();
        Ok(count)
    }

    /// Removes those older than `older_than` and, per VM, all but the newest `keep`; never one that another VM's build on.
    /// Those that somebody named stay, and are not counted, unless `named`. Returns the names of those removed.
    ///
    /// # Errors
    /// Storage errors; what was removed until then stays removed.
    pub async fn prune_snapshots(
        &self,
        keep: Option<usize>,
        older_than: Option<Duration>,
        named: bool,
    ) -> Result<Vec<Name>, ServiceError> {
        let now = self.shared.ports.clock.now_ms();
        let age_ms = older_than.map(|age| i64::try_from(age.as_millis()).unwrap_or(i64::MAX));
        let mut all = self.snapshots(&SnapshotFilter::default());
        all.retain(|one| named || !is_named(&one.record));
        let mut removed = Vec::new();
        // Newest first: a child that goes as well needs nothing written into it.
        for snapshot in all.iter().rev() {
            let too_old = age_ms.is_some_and(|age| now.saturating_sub(snapshot.record.created_ms) > age);
            let newer = all.iter().filter(|other| {
                other.record.vm == snapshot.record.vm && other.record.id > snapshot.record.id
            });
            let too_many = keep.is_some_and(|keep| newer.count() >= keep);
            if (too_old || too_many) && self.may_go(snapshot) {
                self.absorb(snapshot).await?;
                removed.push(snapshot.record.name.clone());
            }
        }
        if !removed.is_empty() {
            self.shared.litter.notify_one();
        }
        Ok(removed)
    }

    /// Whether a snapshot may go by itself: not if something of another VM was made from it.
    fn may_go(&self, snapshot: &Snapshot) -> bool {
        let all = self.shared.snapshots.all();
        let children = |one: &&Snapshot| one.info.parent.as_ref() == Some(&snapshot.record.id);
        all.iter().filter(children).all(|child| child.record.vm == snapshot.record.vm)
    }

    /// Removes a snapshot; later ones of the same VM that build on it get what they need of it.
    async fn absorb(&self, snapshot: &Snapshot) -> Result<(), ServiceError> {
        let id = &snapshot.record.id;
        let _alone = self.shared.absorbing.lock().await;
        let changed = self.shared.ports.snapshots.absorb_snapshot(id, Progress::ignored()).await?;
        self.shared.snapshots.remove(id);
        for info in changed {
            self.shared.snapshots.renew(info);
        }
        Ok(())
    }

    /// Keeps a VM within its limits.
    pub(super) async fn drop_oldest(&self, vm: &VmId) {
        let settings = &self.shared.settings;
        self.drop_oldest_of(vm, false, settings.snapshots_per_vm).await;
        if let Some(limit) = settings.named_snapshots_per_vm {
            self.drop_oldest_of(vm, true, limit).await;
        }
    }

    async fn drop_oldest_of(&self, vm: &VmId, named: bool, limit: usize) {
        let mut of_vm = self.shared.snapshots.of_vm(vm);
        of_vm.retain(|one| is_named(&one.record) == named);
        while of_vm.len() > limit {
            // Never the newest: it was just taken.
            let older = &of_vm[..of_vm.len() - 1];
            let Some(at) = older.iter().position(|one| self.may_go(one)) else { return };
            let oldest = of_vm.remove(at);
            tracing::info!(snapshot = %oldest.record.name, limit, named, "the VM has too many snapshots, its oldest goes");
            if let Err(error) = self.absorb(&oldest).await {
                tracing::warn!(snapshot = %oldest.record.name, %error, "it could not be removed");
                return;
            }
        }
    }

    /// All snapshots together.
    #[must_use]
    pub fn snapshot_statistics(&self) -> SnapshotStatistics {
        let all = self.shared.snapshots.all();
        let by_wish: Vec<&Snapshot> =
            all.iter().filter(|one| one.record.purpose == SnapshotPurpose::User).collect();
        let mut vms: Vec<&VmId> = by_wish.iter().map(|one| &one.record.vm).collect();
        vms.dedup();
        vms.sort();
        vms.dedup();
        SnapshotStatistics {
            count: by_wish.len(),
            golden: all
                .iter()
                .filter(|one| matches!(one.record.purpose, SnapshotPurpose::Golden { .. }))
                .count(),
            bytes: all.iter().map(|one| one.info.own_bytes).sum(),
            vms: vms.len(),
            oldest_ms: by_wish.first().map(|one| one.record.created_ms),
            newest_ms: by_wish.last().map(|one| one.record.created_ms),
        }
    }

    /// Writes a snapshot, whole in itself, as one file of this host; returns its size in bytes.
    ///
    /// # Errors
    /// Storage errors.
    pub async fn export_snapshot(
        &self,
        reference: &str,
        to: &Utf8Path,
        progress: Progress,
    ) -> Result<u64, ServiceError> {
        let id = self.shared.snapshots.find(reference)?.record.id;
        Ok(self.shared.ports.snapshots.export_snapshot(&id, to, progress).await?)
    }

    /// Takes in an exported snapshot. Its image must be here, since its disk lies over it. What the file says of itself is
    /// a stranger's word: it becomes a plain snapshot of a VM that is not here, without hooks and disks of this host. If the
    /// future is dropped it goes on to its end.
    ///
    /// # Errors
    /// Storage errors; a name that is taken; sizes beyond what this host allows.
    pub async fn import_snapshot(
        &self,
        name: Name,
        from: &Utf8Path,
        progress: Progress,
    ) -> Result<Snapshot, ServiceError> {
        let id = self.shared.new_snapshot_id();
        let guard = NameGuard::reserve(&self.shared, &name, &id)?;
        let (service, from) = (Self { shared: Arc::clone(&self.shared) }, from.to_owned());
        let importing = self.shared.actors.spawn(async move {
            let host = &service.shared.settings.limits;
            let limits = ImportLimits { memory_mib: host.max_memory_mib, disk_mib: host.max_disk_mib };
            let snapshots = &service.shared.ports.snapshots;
            let info = snapshots.import_snapshot(&id, &from, limits, progress).await?;
            match service.adapt(&info, &from, name).await {
                Ok(record) => {
                    let snapshot = Snapshot { record, info };
                    guard.keep(snapshot.clone());
                    Ok(snapshot)
                }
                Err(error) => {
                    service.shared.ports.snapshots.remove_snapshot(&id).await?;
                    Err(error)
                }
            }
        });
        importing.await.map_err(|_| ServiceError::ShuttingDown)?
    }

    /// What is kept of a stranger's description, stored where the next server finds it.
    async fn adapt(
        &self,
        info: &SnapshotInfo,
        from: &Utf8Path,
        name: Name,
    ) -> Result<SnapshotRecord, ServiceError> {
        let bad = |detail: String| StorageError::BadInput { what: from.to_string(), detail };
        let theirs: SnapshotRecord = serde_json::from_value(info.description.record.clone())
            .map_err(|error| bad(format!("its description cannot be read: {error}")))?;
        let SnapshotRecord {
            // Ours to say.
            id: _,
            name: _,
            tenant: _,
            purpose: _,
            vm: _,
            description,
            vm_name,
            template,
            image_digest,
            mut labels,
            epoch,
            created_ms,
            pause_us,
        } = theirs;
        // It means something here: a VM with this label is hidden, and removed as a leftover.
        labels.remove(GOLDEN_LABEL);
        let template = of_a_stranger(template);
        admission::check(&template, &self.shared.settings.limits)?;
        let sizes = (template.memory_mib, template.disk_mib);
        if sizes != (info.description.memory_mib, info.description.disk_mib) || epoch > u64::MAX / 2 {
            return Err(bad("its description does not fit its parts".to_owned()).into());
        }
        self.shared.ports.images.image(&image_digest).await?;
        let record = SnapshotRecord {
            id: info.id.clone(),
            name,
            tenant: LOCAL_TENANT.to_owned(),
            description,
            purpose: SnapshotPurpose::User,
            vm: self.shared.ports.new_vm_id(),
            vm_name,
            template,
            image_digest,
            labels,
            epoch,
            // A time in the future would be kept for ever by a limit of age.
            created_ms: created_ms.min(self.now_ms()),
            pause_us,
        };
        let document = serde_json::to_value(&record).map_err(|error| bad(error.to_string()))?;
        let kind = DocumentKind::ImportedSnapshot;
        self.shared.ports.store.put_document(kind, info.id.as_str(), &document).await?;
        Ok(record)
    }
}

/// A stranger's template without what would act on this host. What its memory and disk were made with stays. Every field is
/// named, so that a new one does not compile before somebody has decided.
fn of_a_stranger(mut template: Template) -> Template {
    let Template {
        // A right to reach something is given here, not brought along.
        network,
        start_commands,
        // Only golden snapshots are made with it.
        warm_up,
        labels,
        extra_disks,
        shares,
        hooks,
        name: _,
        description: _,
        image: _,
        kernel: _,
        kernel_arguments: _,
        vcpus: _,
        memory_mib: _,
        disk_mib: _,
        environment: _,
        init: _,
        boot_timeout_ms: _,
    } = &mut template;
    *network = NetworkMode::default();
    start_commands.clear();
    warm_up.clear();
    labels.remove(GOLDEN_LABEL);
    extra_disks.clear();
    shares.clear();
    hooks.clear();
    template
}
