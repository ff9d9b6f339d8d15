//! Branching a VM: for forks and for snapshots.

use std::sync::Arc;

use camino::{Utf8Path, Utf8PathBuf};
use microvm_ports::branch::{BranchRequest, BranchTimes};
use microvm_ports::snapshot::{BranchFiles, StateDescription, UserDisk};
use microvm_ports::storage::{DiskFormat, VmFiles};
use microvm_ports::{GuestError, Machine};
use microvm_types::snapshot::SnapshotRecord;
use microvm_types::vm::VmRecord;
use microvm_types::{ErrorKind, Phase, VmId};

use super::journal::Journal;
use super::steps::Steps;
use crate::error::ServiceError;
use crate::events::What;
use crate::launch::shares::check_whole;
use crate::state::Snapshot;
use crate::vm::command::{ForkPoint, SnapshotOrder, Written, check_branchable, written};
use crate::vm::shared::Shared;
use crate::vm::standby::StandbyVmms;

/// Layers below a disk from which on it is flattened in the background.
const FLATTEN_SOON: usize = 12;
/// Layers below a disk from which on no further branch is made before it is flattened: each costs the VMM two open files
/// and every read a look more.
const FLATTEN_NOW: usize = 48;

/// A branch that was taken.
#[derive(Clone)]
pub(super) struct Branched {
    pub(super) files: BranchFiles,
    pub(super) times: BranchTimes,
    /// The VM's disks as they were before.
    disks: VmFiles,
}

/// Layers below the disk that has most.
fn depth(files: &VmFiles) -> usize {
    let disks = std::iter::once(&files.scratch).chain(&files.own);
    disks.map(|disk| disk.backing.len()).max().unwrap_or(0)
}

/// Makes states of one VM ready for its children, and keeps VMMs ready for them.
#[derive(Default)]
pub(super) struct Branching {
    standby: StandbyVmms,
}

impl Branching {
    /// Makes a state ready for `count` children.
    pub(super) async fn fork_point(
        &mut self,
        journal: &Journal,
        branched: Branched,
        count: usize,
    ) -> Result<ForkPoint, ServiceError> {
        let Journal { shared, record, .. } = journal;
        let Branched { files, times, disks } = branched;
        let changed_bytes = files.branch.memory.page_bytes();
        // The driver says in which form a machine loads memory; the store makes that form once for all children.
        let load = shared.ports.load_shape(&record.template).await?;
        let source = shared.ports.snapshots.fork_point(files, count, load).await?;
        // After the fork point exists: shortening the chain before would copy what the children are about to share.
        care_for_chain(journal, disks);
        // Where much has changed each fork has a memory base of its own, and no VMM can wait for it.
        let machine = journal.living()?;
        let base = machine.brancher().and_then(|brancher| brancher.memory_base());
        let mut standby = Vec::new();
        if let Some(base) = base.filter(|base| source.memory.file() == Some(base)) {
            standby = self.standby.take(count);
            self.standby.refill(shared, record, &source, base);
        }
        Ok(ForkPoint { source, record: record.clone(), times, changed_bytes, standby })
    }

    /// Ends the VMMs that wait for children: the machine whose memory they share ends.
    pub(super) fn end_standby(&mut self) {
        self.standby.clear();
    }
}

/// Takes the VM's state for a fork; it goes on doing what it did, or has ended.
pub(super) async fn take(journal: &Journal) -> Result<Branched, ServiceError> {
    branch(journal, false, |_| serde_json::Value::Null).await
}

/// Takes the VM's state for a snapshot, as [`take`]; with the record of that.
pub(super) async fn take_for(
    journal: &Journal,
    order: &SnapshotOrder,
) -> Result<(Branched, SnapshotRecord), ServiceError> {
    let vm = &journal.record;
    // The closure is called inside of the pause, with the times that the record must tell.
    let mut kept = None;
    let branched = branch(journal, order.stay_paused, |times| {
        let record = SnapshotRecord {
            id: order.id.clone(),
            name: order.name.clone(),
            tenant: vm.tenant.clone(),
            description: order.description.clone(),
            purpose: order.purpose.clone(),
            vm: vm.id.clone(),
            vm_name: vm.name.clone(),
            template: vm.template.clone(),
            image_digest: vm.image_digest.clone(),
            memory_now_mib: vm.memory_now_mib,
            labels: vm.labels.clone(),
            epoch: vm.epoch,
            created_ms: journal.now_ms(),
            pause_us: u64::try_from(times.pause.as_micros()).unwrap_or(u64::MAX),
        };
        let value = serde_json::to_value(&record).unwrap_or_default();
        kept = Some(record);
        value
    })
    .await?;
    Ok((branched, kept.ok_or(ServiceError::ShuttingDown)?))
}

/// Writes a snapshot. Further commands wait: until the layers below the new tops are safe they must not be branched.
pub(super) async fn write(
    journal: &Journal,
    order: SnapshotOrder,
    branched: Branched,
    record: SnapshotRecord,
) -> Result<Written, ServiceError> {
    let shared = &journal.shared;
    let Branched { files, times, disks } = branched;
    // Whoever asked not to wait has the answer now; nobody listens otherwise.
    let _ = order.taken.send(times);
    let info = shared.ports.snapshots.write_snapshot(&order.id, files, order.full, order.progress).await?;
    if !order.stay_paused {
        care_for_chain(journal, disks);
    }
    Ok(written(shared, Snapshot { record, info }))
}

/// Takes the VM's state; it goes on doing what it did, or has ended.
async fn branch(
    journal: &Journal,
    stay_paused: bool,
    describe: impl FnOnce(&BranchTimes) -> serde_json::Value,
) -> Result<Branched, ServiceError> {
    let Journal { shared, record, .. } = journal;
    check_branchable(record.phase())?;
    check_whole(&record.template)?;
    let machine = journal.living()?;
    let brancher = machine.brancher().ok_or(ServiceError::NoBranching)?;
    let ports = &shared.ports;
    // Read once per branch: the chain changes with every branch and every flattening.
    let mut disks = ports.vm_storage.vm_files(&record.id).await?;
    let own = own_disks(record, &disks)?;
    // Waits for the work in this rare case; the pause of the VM is not longer for it.
    if depth(&disks) >= FLATTEN_NOW {
        flatten(shared, &record.id, &*machine, &disks).await?;
        disks = ports.vm_storage.vm_files(&record.id).await?;
    }
    let steps = Steps {
        snapshots: Arc::clone(&ports.snapshots),
        vm: record.id.clone(),
        own,
        guest: journal.guest.clone(),
    };
    let directory = disks.directory.clone();
    // The driver calls `steps` inside its pause: input is held, disks are switched, and the VM goes on.
    let branch = brancher.branch(BranchRequest { steps: Arc::new(steps), directory, stay_paused }).await?;
    let times = branch.times;
    if !stay_paused && !branch.ended && record.phase() == Phase::Running {
        tell_time_soon(journal);
    }
    journal.tell_what(What::Branched { pause: times.pause, changed_bytes: branch.memory.page_bytes() });
    tracing::info!(vm = %record.id, ?times, changed_bytes = branch.memory.page_bytes(), "branched");
    let description = StateDescription {
        memory_mib: record.template.machine_memory_mib(),
        disk_mib: record.template.disk_mib,
        memory: branch.memory.shape(),
        compatibility: brancher.compatibility().clone(),
        record: describe(&times),
    };
    let files = BranchFiles { vm: record.id.clone(), branch, description };
    Ok(Branched { files, times, disks })
}

/// Writable disks that are files of the user's; every one must be of a kind that can be branched.
fn own_disks(record: &VmRecord, known: &VmFiles) -> Result<Vec<UserDisk>, ServiceError> {
    let mut own = Vec::new();
    for disk in record.template.extra_disks.iter().filter(|disk| !disk.read_only) {
        let serial = disk.name.to_string();
        // It has been branched before: from then on it is a chain below this VM, like the scratch disk.
        if known.own.iter().any(|known| known.serial == serial) {
            continue;
        }
        if disk.format != Some(DiskFormat::Raw) {
            return Err(ServiceError::WritableDisk(disk.name.clone()));
        }
        own.push(UserDisk { serial, path: Utf8PathBuf::from(&disk.path) });
    }
    Ok(own)
}

/// Tells the guest how late it is after the pause of a branch; nobody waits for it.
fn tell_time_soon(journal: &Journal) {
    let Some(guest) = journal.guest.clone() else { return };
    let id = journal.record.id.clone();
    journal.shared.actors.spawn(async move {
        match guest.tell_time().await {
            // An older agent: so little is not worth another epoch.
            Ok(()) | Err(GuestError::Refused { kind: ErrorKind::Unsupported, .. }) => {}
            Err(error) => {
                tracing::info!(vm = %id, %error, "its clock is late by the pause of its branch")
            }
        }
    });
}

/// Shortens a long chain of layers in the background. A branch that comes meanwhile interrupts it; the next one begins
/// it anew.
fn care_for_chain(journal: &Journal, disks: VmFiles) {
    let Some(machine) = journal.machine.clone() else { return };
    // The branch has put one more layer below each.
    if depth(&disks) + 1 >= FLATTEN_SOON {
        let (shared, id) = (Arc::clone(&journal.shared), journal.record.id.clone());
        journal.shared.actors.spawn(async move {
            // A server that ends does not wait for it: the chain stays whole at every moment of the copy.
            tokio::select! {
                () = shared.ending.cancelled() => {}
                outcome = flatten(&shared, &id, &*machine, &disks) => {
                    if let Err(error) = outcome {
                        tracing::info!(vm = %id, %error, "its chain of layers stays long: the next branch tries again to shorten it");
                    }
                }
            }
        });
    }
}

/// Makes a VM's disks independent of the layers between their tops and their lowest files.
async fn flatten(
    shared: &Shared,
    id: &VmId,
    machine: &dyn Machine,
    files: &VmFiles,
) -> Result<(), ServiceError> {
    // Where chains cannot be shortened while the machine runs they grow, until the store refuses the next branch.
    let Some(flattener) = machine.brancher().and_then(|brancher| brancher.flattener()) else { return Ok(()) };
    for disk in std::iter::once(&files.scratch).chain(&files.own) {
        // The VMM says which file it was: the newest one that was prepared may not be in use.
        let Some(top) = flattener.flatten(&disk.serial).await? else { continue };
        shared.ports.snapshots.note_flattened(id, Utf8Path::new(&top)).await?;
        shared.litter.notify_one();
        tracing::info!(vm = %id, disk = disk.serial, layers = disk.backing.len(), "made independent of its layers");
    }
    Ok(())
}
