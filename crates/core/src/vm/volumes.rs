//! Named volumes of VMs: found or created, and used by one VM that writes or by several that read.

use std::sync::Arc;
use std::time::Duration;

use camino::Utf8Path;
use microvm_types::template::{DiskFormat, ExtraDisk, Template};
use microvm_types::vm::{Origin, VmRecord};
use microvm_types::volume::{DEFAULT_VOLUME_MIB, VolumeMount};
use microvm_types::{Name, Phase, VmId, VolumeId, VolumeRecord};

use super::command::Command;
use super::made_volume::MadeVolume;
use super::shared::Shared;
use crate::error::ServiceError;
use crate::state::VolumeUse;

/// Volumes that a VM is to have which is not registered yet: they are not removed meanwhile.
pub(crate) struct HeldVolumes {
    shared: Arc<Shared>,
    disks: Vec<String>,
    /// Those of which nobody was told yet: created for the VM, or for another one that is not there yet either.
    made: Vec<MadeVolume>,
}

impl HeldVolumes {
    /// Holds no volume any more: the record of this VM tells that it has them. Those of which nobody was told yet.
    pub(crate) fn registered(mut self, vm: &VmId) -> Vec<MadeVolume> {
        let mut made = std::mem::take(&mut self.made);
        made.iter_mut().for_each(|one| one.vm = Some(vm.clone()));
        made
    }
}

impl Drop for HeldVolumes {
    fn drop(&mut self) {
        self.disks.iter().for_each(|disk| self.shared.volumes.let_go(disk));
    }
}

/// Gives a template the disks of its volumes, which are created if there are none of these names. They are kept until the
/// answer is dropped.
///
/// # Errors
/// Storage errors; [`ServiceError::Invalid`] for a further disk that has the name of a volume's, and for a default size above the
/// limit; [`ServiceError::VolumeUnclear`].
pub(crate) async fn attach(
    shared: &Arc<Shared>,
    tenant: &str,
    template: &mut Template,
) -> Result<HeldVolumes, ServiceError> {
    let mut held = HeldVolumes { shared: Arc::clone(shared), disks: Vec::new(), made: Vec::new() };
    for (index, VolumeMount { name, read_only, .. }) in template.volumes.iter().enumerate() {
        let path = find_or_create(shared, tenant, name, &mut held).await?;
        let serial = VolumeMount::serial(index);
        template.extra_disks.push(ExtraDisk {
            name: serial.parse().map_err(|error: microvm_types::NameError| ServiceError::Invalid {
                field: "volumes",
                reason: error.to_string(),
            })?,
            path,
            read_only: *read_only,
            format: Some(DiskFormat::Raw),
        });
    }
    Ok(held)
}

/// The disk of a volume of this name, which is created if there is none, and held.
async fn find_or_create(
    shared: &Arc<Shared>,
    tenant: &str,
    name: &Name,
    held: &mut HeldVolumes,
) -> Result<String, ServiceError> {
    loop {
        {
            // It cannot be removed between the look and the hold.
            let _alone = shared.making_volumes.lock().await;
            if let Some(known) = named(shared, tenant, name)? {
                let disk = shared.ports.volumes.volume_disk(&known.id).into_string();
                shared.volumes.hold(&disk);
                held.disks.push(disk.clone());
                let is_in_hand = held.made.iter().any(|made| made.is_of(&disk));
                if !is_in_hand && shared.volumes.is_untold(&disk) {
                    // Whoever is the last to give up removes it.
                    held.made.push(MadeVolume::of(shared, known, &disk));
                }
                return Ok(disk);
            }
        }
        // One that cannot be read may have this name, and data that an empty one would hide.
        if let Some(one) = shared.unreadable.volumes.all().first() {
            let what = format!(
                "the volume {} cannot be read and may have this name; repair it, or create a volume by `volume create` first",
                one.name
            );
            return Err(ServiceError::VolumeUnclear { volume: name.clone(), what });
        }
        let most = shared.settings.limits.max_disk_mib;
        if DEFAULT_VOLUME_MIB > most {
            let reason = format!(
                "there is no volume `{name}`, and a new one of {DEFAULT_VOLUME_MIB} MiB is above the limit of {most}: create it with a size first"
            );
            return Err(ServiceError::Invalid { field: "volumes", reason });
        }
        match create(shared, tenant, name, DEFAULT_VOLUME_MIB).await {
            Ok(made) => held.made.push(made),
            Err(ServiceError::VolumeNameTaken(_)) => {}
            Err(error) => return Err(error),
        }
    }
}

/// The one volume of a name.
fn named(shared: &Shared, tenant: &str, name: &Name) -> Result<Option<VolumeRecord>, ServiceError> {
    shared.volumes.named(tenant, name.as_str()).map_err(|ids| several(name, &ids))
}

/// The error for a name that several volumes have.
pub(crate) fn several(name: &Name, ids: &[VolumeId]) -> ServiceError {
    let ids = ids.iter().map(VolumeId::as_str).collect::<Vec<_>>().join(", ");
    let what = format!("the volumes {ids} all have it; remove those that are not needed by id");
    ServiceError::VolumeUnclear { volume: name.clone(), what }
}

/// Creates a volume, which goes again unless the answer is kept. The work goes on to its end if the future is dropped: a volume on disk
/// that the table does not know would be found at the next start only, beside one made meanwhile.
///
/// # Errors
/// [`ServiceError::VolumeNameTaken`]; storage errors.
pub(crate) async fn create(
    shared: &Arc<Shared>,
    tenant: &str,
    name: &Name,
    size_mib: u32,
) -> Result<MadeVolume, ServiceError> {
    let (here, tenant, name) = (Arc::clone(shared), tenant.to_owned(), name.clone());
    let made = shared.actors.spawn(async move {
        // Two at once would both find that there is none of this name.
        let _alone = here.making_volumes.lock().await;
        if named(&here, &tenant, &name)?.is_some() {
            return Err(ServiceError::VolumeNameTaken(name));
        }
        let now_ms = here.ports.clock.now_ms();
        let id = VolumeId::from_parts(now_ms.unsigned_abs(), here.ports.random_u64());
        let record = VolumeRecord { id, name, tenant, size_mib, created_ms: now_ms };
        here.ports.volumes.create_volume(&record).await?;
        let disk = here.ports.volumes.volume_disk(&record.id).into_string();
        here.volumes.insert_untold(record.clone(), &disk);
        tracing::info!(volume = %record.name, size_mib, "created a volume");
        // Nobody may be there to take it any more: it is removed by its drop then.
        Ok(MadeVolume::of(&here, record, &disk))
    });
    made.await.map_err(|_| ServiceError::ShuttingDown)?
}

/// Removes a volume that no VM and no pool has, to the end if the future is dropped.
///
/// # Errors
/// [`ServiceError::VolumeHasVms`]; [`ServiceError::VolumeUsersUnknown`]; [`ServiceError::UnknownVolume`] if somebody else has removed
/// it; storage errors.
pub(crate) async fn remove(shared: &Arc<Shared>, record: VolumeRecord) -> Result<(), ServiceError> {
    let here = Arc::clone(shared);
    let removed = shared.actors.spawn(async move { remove_if(&here, record, || true).await });
    removed.await.map_err(|_| ServiceError::ShuttingDown)?
}

/// Removes a volume that nobody has, if that is `wanted` at the moment from which on nobody finds it.
pub(super) async fn remove_if(
    shared: &Shared,
    record: VolumeRecord,
    wanted: impl FnOnce() -> bool,
) -> Result<(), ServiceError> {
    // Nobody finds it for a new VM meanwhile.
    let _alone = shared.making_volumes.lock().await;
    if !wanted() {
        return Ok(());
    }
    if !shared.volumes.contains(&record.id) {
        return Err(ServiceError::UnknownVolume(record.name.to_string()));
    }
    let disk = shared.ports.volumes.volume_disk(&record.id);
    let users = all_users(shared, &record, &disk);
    if !users.is_empty() {
        return Err(ServiceError::VolumeHasVms { volume: record.name, vms: users.join(", ") });
    }
    require_known_users(shared, &[(disk.as_str(), &record.name)]).await?;
    shared.ports.volumes.remove_volume(&record.id).await?;
    shared.volumes.remove(&record.id);
    tracing::info!(volume = %record.name, id = %record.id, "removed a volume");
    Ok(())
}

/// Whatever has a volume, in words.
fn all_users(shared: &Shared, record: &VolumeRecord, disk: &Utf8Path) -> Vec<String> {
    let mut all: Vec<String> = users(shared, disk).iter().map(|vm| format!("the VM `{vm}`")).collect();
    if shared.volumes.is_held(disk.as_str()) {
        all.push("a VM that is being created".to_owned());
    }
    for pool in shared.pools.all() {
        let inner = pool.lock();
        let pool = &inner.record;
        if pool.tenant == record.tenant && pool.template.volumes.iter().any(|one| one.name == record.name) {
            all.push(format!("the pool `{}`", pool.name));
        }
    }
    all
}

/// Refuses while a VM may have one of these disks that this server does not know: its row cannot be read, or it has none. The
/// record in the VM's own directory tells more, if it can be read.
async fn require_known_users(shared: &Shared, disks: &[(&str, &Name)]) -> Result<(), ServiceError> {
    let storage = &shared.ports.vm_storage;
    let mut unknown: Vec<(String, &str)> = shared
        .unreadable
        .vms
        .all()
        .into_iter()
        .map(|one| (one.name, "has a row that cannot be read"))
        .collect();
    for id in storage.vm_directories().await? {
        if shared.registry.by_id(&id).is_err() && !unknown.iter().any(|(known, _)| known == id.as_str()) {
            unknown.push((id.to_string(), "has a disk and no record"));
        }
    }
    for (name, fault) in unknown {
        let mut concerned = disks.first();
        if let Ok(id) = name.parse() {
            if let Ok(Some(record)) = storage.kept_record(&id).await {
                let has = |(disk, _): &&(&str, &Name)| uses(&record).iter().any(|one| one.disk == *disk);
                concerned = disks.iter().find(has);
            } else if fault == "has a disk and no record"
                // Deleted since the list was made, or an unfinished creation, which is known before it has a machine.
                && (!storage.vm_directories().await?.contains(&id) || storage.is_unfinished(&id).await?)
            {
                continue;
            }
        }
        if let Some((_, volume)) = concerned {
            let what = format!("the VM {name} {fault}");
            return Err(ServiceError::VolumeUsersUnknown { volume: (*volume).clone(), what });
        }
    }
    Ok(())
}

/// Uses that a VM makes of volumes while it has a machine, or memory on disk. A fork or a restored VM has copies of its own of
/// those that it writes to.
pub(crate) fn uses(record: &VmRecord) -> Vec<VolumeUse> {
    let has_copies = matches!(record.origin, Origin::Fork { .. } | Origin::Snapshot { .. });
    let all = record.template.volumes.iter().enumerate().filter_map(|(index, mount)| {
        let serial = VolumeMount::serial(index);
        let disk = record.template.extra_disks.iter().find(|disk| disk.name.as_str() == serial)?;
        (mount.read_only || !has_copies).then(|| VolumeUse {
            disk: disk.path.clone(),
            volume: mount.name.clone(),
            vm: record.name.clone(),
            writes: !mount.read_only,
        })
    });
    all.collect()
}

/// True if a VM in this state leaves its volumes to others.
fn rests(record: &VmRecord) -> bool {
    matches!(record.phase(), Phase::Stopped | Phase::Failed | Phase::Deleted)
        && record.life.asleep().is_none()
        // One that could not be ended may still write.
        && record.machine.is_none()
}

/// Leaves the volumes of a VM that has neither a machine nor memory on disk to others.
pub(crate) fn release_at_rest(shared: &Shared, record: &VmRecord) {
    if rests(record) {
        shared.volumes.release(&record.id);
    }
}

/// Notes what a VM of an earlier server uses.
pub(crate) fn note(shared: &Shared, record: &VmRecord) {
    if !rests(record) {
        shared.volumes.note(&record.id, &uses(record));
    }
}

/// Has a VM whose machine is going to begin use its volumes, and VMs that rest write back what they wrote there.
///
/// # Errors
/// [`ServiceError::VolumeInUse`]; [`ServiceError::VolumeUsersUnknown`] for a VM that is to write; what keeps another VM from
/// writing back.
pub(crate) async fn take(shared: &Arc<Shared>, record: &VmRecord) -> Result<(), ServiceError> {
    let uses = uses(record);
    if uses.is_empty() {
        return Ok(());
    }
    shared.volumes.take(&record.id, &uses).map_err(|other| ServiceError::VolumeInUse {
        volume: other.volume,
        vm: other.vm,
        writes: other.writes,
    })?;
    let settled = async {
        have_written_back(shared, record, &uses).await?;
        let writes: Vec<_> =
            uses.iter().filter(|one| one.writes).map(|one| (one.disk.as_str(), &one.volume)).collect();
        match writes.is_empty() {
            true => Ok(()),
            false => require_known_users(shared, &writes).await,
        }
    };
    let settled = settled.await;
    if settled.is_err() {
        // One with memory on disk has its volumes whatever is asked of it.
        release_at_rest(shared, record);
    }
    settled
}

/// What a VM wrote while it had branches may not be in the volume yet, if its machine died.
async fn have_written_back(
    shared: &Arc<Shared>,
    record: &VmRecord,
    wanted: &[VolumeUse],
) -> Result<(), ServiceError> {
    for handle in shared.registry.all() {
        let other = handle.record();
        let wrote = |one: &VolumeUse| one.writes && wanted.iter().any(|wanted| wanted.disk == one.disk);
        let Some(wrote) = uses(&other).into_iter().find(wrote) else { continue };
        let goes = other.phase() == Phase::Deleting;
        // Any other one that does not rest was refused, or is refused in a moment: this VM has the volume.
        if other.id == record.id || !(goes || rests(&other)) {
            continue;
        }
        let files = shared.ports.vm_storage.vm_files(&other.id).await;
        // One that goes has no files any more once it has written back.
        if files.as_ref().map_or(goes, |files| files.own.is_empty()) {
            continue;
        }
        if goes {
            return Err(ServiceError::VolumeInUse { volume: wrote.volume, vm: wrote.vm, writes: true });
        }
        // Nothing else is done of a stop: it rests, and cannot begin while this VM has the volume.
        match handle.ask(|reply| Command::Stop { force: true, grace: Duration::ZERO, reply }).await {
            // Deleted meanwhile, which writes back, too.
            Err(ServiceError::UnknownVm(_)) => {}
            other => other?,
        }
    }
    Ok(())
}

/// Notes that a VM has its volumes for others to see: whoever reaches it may write to them, so they stay whatever becomes of its creation.
pub(crate) fn note_told(shared: &Shared, record: &VmRecord) {
    uses(record).iter().for_each(|one| shared.volumes.note_told(&one.disk));
}

/// Names of all VMs, of anybody and in any state, that have the disk of a volume as theirs.
pub(crate) fn users(shared: &Shared, disk: &Utf8Path) -> Vec<Name> {
    let has = |record: &VmRecord| uses(record).iter().any(|one| one.disk == disk.as_str());
    let records = shared.registry.all().into_iter().map(|handle| handle.record());
    records.filter(has).map(|record| record.name).collect()
}
