//! Named volumes of VMs: found or created, and used by one VM that writes or by several that read.

use std::sync::Arc;
use std::time::Duration;

use camino::Utf8Path;
use microvm_types::template::{DiskFormat, ExtraDisk, Template};
use microvm_types::vm::{Origin, VmRecord};
use microvm_types::volume::{DEFAULT_VOLUME_MIB, VolumeMount};
use microvm_types::{Name, Phase, VolumeId, VolumeRecord};

use super::command::Command;
use super::shared::Shared;
use crate::error::ServiceError;
use crate::state::VolumeUse;

/// Gives a template the disks of its volumes, which are created if there are none of these names.
///
/// # Errors
/// Storage errors; [`ServiceError::Invalid`] for a further disk that has the name of a volume's.
pub(crate) async fn attach(
    shared: &Shared,
    tenant: &str,
    template: &mut Template,
) -> Result<(), ServiceError> {
    for (index, VolumeMount { name, read_only, .. }) in template.volumes.iter().enumerate() {
        let volume = find_or_create(shared, tenant, name, DEFAULT_VOLUME_MIB).await?;
        let serial = VolumeMount::serial(index);
        template.extra_disks.push(ExtraDisk {
            name: serial.parse().map_err(|error: microvm_types::NameError| ServiceError::Invalid {
                field: "volumes",
                reason: error.to_string(),
            })?,
            path: shared.ports.volumes.volume_disk(&volume.id).into_string(),
            read_only: *read_only,
            format: Some(DiskFormat::Raw),
        });
    }
    Ok(())
}

/// A volume of this name, created with this size if there is none.
async fn find_or_create(
    shared: &Shared,
    tenant: &str,
    name: &Name,
    size_mib: u32,
) -> Result<VolumeRecord, ServiceError> {
    match create(shared, tenant, name, size_mib).await {
        Err(ServiceError::VolumeNameTaken(_)) => {
            let known = shared.volumes.find(tenant, name.as_str());
            known.ok_or_else(|| ServiceError::UnknownVolume(name.to_string()))
        }
        other => other,
    }
}

/// Creates a volume.
///
/// # Errors
/// [`ServiceError::VolumeNameTaken`]; storage errors.
pub(crate) async fn create(
    shared: &Shared,
    tenant: &str,
    name: &Name,
    size_mib: u32,
) -> Result<VolumeRecord, ServiceError> {
    // Two at once would both find that there is none of this name.
    let _alone = shared.making_volumes.lock().await;
    if shared.volumes.find(tenant, name.as_str()).is_some_and(|known| known.name == *name) {
        return Err(ServiceError::VolumeNameTaken(name.clone()));
    }
    let now_ms = shared.ports.clock.now_ms();
    let record = VolumeRecord {
        id: VolumeId::from_parts(now_ms.unsigned_abs(), shared.ports.random_u64()),
        name: name.clone(),
        tenant: tenant.to_owned(),
        size_mib,
        created_ms: now_ms,
    };
    shared.ports.volumes.create_volume(&record).await?;
    shared.volumes.insert(record.clone());
    tracing::info!(volume = %record.name, size_mib, "created a volume");
    Ok(record)
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
/// [`ServiceError::VolumeInUse`]; what keeps another VM from writing back.
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
    let settled = have_written_back(shared, record, &uses).await;
    if settled.is_err() {
        shared.volumes.release(&record.id);
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
        // One that does not rest was refused, or is refused in a moment: this VM has the volume.
        if other.id == record.id || !rests(&other) || !uses(&other).iter().any(wrote) {
            continue;
        }
        let files = shared.ports.vm_storage.vm_files(&other.id).await;
        if files.is_ok_and(|files| files.own.is_empty()) {
            continue;
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

/// Names of all VMs, of anybody and in any state, that have the disk of a volume as theirs.
pub(crate) fn users(shared: &Shared, disk: &Utf8Path) -> Vec<Name> {
    let has = |record: &VmRecord| uses(record).iter().any(|one| one.disk == disk.as_str());
    let records = shared.registry.all().into_iter().map(|handle| handle.record());
    records.filter(has).map(|record| record.name).collect()
}
