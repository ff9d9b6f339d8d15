//! Branching the actor's VM: for forks, for snapshots, and back in time.

use camino::{Utf8Path, Utf8PathBuf};
use microvm_ports::branch::{BranchRequest, BranchTimes};
use microvm_ports::snapshot::{BranchFiles, BranchSource, StateDescription, UserDisk};
use microvm_ports::storage::{DiskFormat, VmFiles};
use microvm_ports::{GuestError, Machine};
use microvm_types::VmId;
use microvm_types::lifecycle::{LifecycleEvent, Work};
use microvm_types::snapshot::SnapshotRecord;
use microvm_types::{ErrorKind, Phase};

use super::VmActor;
use crate::error::ServiceError;
use crate::events::What;
use crate::launch::shares::check_whole;
use crate::state::Snapshot;
use crate::vm::command::{ForkPoint, SnapshotOrder, Written, check_branchable, written};
use crate::vm::shared::Shared;

/// Layers below a disk from which on it is flattened in the background.
const FLATTEN_SOON: usize = 12;
/// Layers below a disk from which on no further branch is made before it is flattened: each costs the VMM two open files
/// and every read a look more.
const FLATTEN_NOW: usize = 48;

/// A branch that was taken.
struct Branched {
    files: BranchFiles,
    times: BranchTimes,
    /// The VM's disks as they were before.
    disks: VmFiles,
}

/// Layers below the disk that has most.
fn depth(files: &VmFiles) -> usize {
    let disks = std::iter::once(&files.scratch).chain(&files.own);
    disks.map(|disk| disk.backing.len()).max().unwrap_or(0)
}

impl VmActor {
    /// Makes a state for `count` children.
    pub(super) async fn fork_point(&mut self, count: usize) -> Result<ForkPoint, ServiceError> {
        let Branched { files, times, disks } = self.branch(false, |_| serde_json::Value::Null).await?;
        let changed_bytes = files.branch.pages.len();
        let memory_base = files.memory_base.clone();
        let source = self.shared.ports.snapshots.fork_point(files, count).await?;
        self.care_for_chain(disks);
        // Where much has changed each fork has a memory base of its own, and no VMM can wait for it.
        let mut standby = Vec::new();
        if source.memory_base == memory_base {
            standby = self.standby.take(count);
            self.standby.refill(&self.shared, &self.record, &source);
        }
        Ok(ForkPoint { source, record: self.record.clone(), times, changed_bytes, standby })
    }

    /// Writes a snapshot. Further commands wait: until the layers below the new tops are safe they must not be branched.
    pub(super) async fn snapshot(&mut self, order: SnapshotOrder) -> Result<Written, ServiceError> {
        let mut kept = None;
        let Branched { files, times, disks } = self
            .branch(order.stay_paused, |times| {
                let record = SnapshotRecord {
                    id: order.id.clone(),
                    name: order.name,
                    tenant: self.record.tenant.clone(),
                    description: order.description,
                    purpose: order.purpose,
                    vm: self.record.id.clone(),
                    vm_name: self.record.name.clone(),
                    template: self.record.template.clone(),
                    image_digest: self.record.image_digest.clone(),
                    labels: self.record.labels.clone(),
                    epoch: self.record.epoch,
                    created_ms: self.shared.ports.clock.now_ms(),
                    pause_us: u64::try_from(times.pause.as_micros()).unwrap_or(u64::MAX),
                };
                let value = serde_json::to_value(&record).unwrap_or_default();
                kept = Some(record);
                value
            })
            .await?;
        let _ = order.taken.send(times);
        let snapshots = &self.shared.ports.snapshots;
        let info = snapshots.write_snapshot(&order.id, files, order.full, order.progress).await?;
        let record = kept.ok_or(ServiceError::ShuttingDown)?;
        if !order.stay_paused {
            self.care_for_chain(disks);
        }
        Ok(written(&self.shared, Snapshot { record, info }))
    }

    /// Shortens a long chain of layers in the background. A branch that comes meanwhile interrupts it; the next one begins
    /// it anew.
    fn care_for_chain(&self, disks: VmFiles) {
        let Some(machine) = self.machine.clone() else { return };
        // The branch has put one more layer below each.
        if depth(&disks) + 1 >= FLATTEN_SOON {
            let (shared, id) = (std::sync::Arc::clone(&self.shared), self.record.id.clone());
            self.shared.actors.spawn(async move {
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

    /// Takes the VM's state; it goes on doing what it did.
    async fn branch(
        &self,
        stay_paused: bool,
        describe: impl FnOnce(&BranchTimes) -> serde_json::Value,
    ) -> Result<Branched, ServiceError> {
        check_branchable(self.record.phase())?;
        check_whole(&self.record.template)?;
        let machine = self.living()?;
        let brancher = machine.brancher().ok_or(ServiceError::NoBranching)?;
        let ports = &self.shared.ports;
        let mut disks = ports.vm_storage.vm_files(&self.record.id).await?;
        let own = self.own_disks(&disks)?;
        if depth(&disks) >= FLATTEN_NOW {
            flatten(&self.shared, &self.record.id, &*machine, &disks).await?;
            disks = ports.vm_storage.vm_files(&self.record.id).await?;
        }
        let tops = ports.snapshots.prepare_tops(&self.record.id, &own).await?;
        let request = BranchRequest { tops: tops.clone(), guest: self.guest.clone(), stay_paused };
        let branch = brancher.branch(request).await?;
        let times = branch.times;
        if !stay_paused && self.record.phase() == Phase::Running {
            self.tell_time_soon();
        }
        self.tell_what(What::Branched { pause: times.pause, changed_bytes: branch.pages.len() });
        tracing::info!(vm = %self.record.id, ?times, changed_bytes = branch.pages.len(), "branched");
        let description = StateDescription {
            memory_mib: self.record.template.memory_mib,
            disk_mib: self.record.template.disk_mib,
            discovery: brancher.discovery(),
            compatibility: brancher.compatibility().clone(),
            record: describe(&times),
        };
        let memory_base = brancher.memory_base().to_owned();
        let files = BranchFiles { vm: self.record.id.clone(), tops, memory_base, branch, description };
        Ok(Branched { files, times, disks })
    }

    /// Tells the guest how late it is after the pause of a branch; nobody waits for it.
    fn tell_time_soon(&self) {
        let Some(guest) = self.guest.clone() else { return };
        let id = self.record.id.clone();
        self.shared.actors.spawn(async move {
            match guest.tell_time().await {
                // An older agent: so little is not worth another epoch.
                Ok(()) | Err(GuestError::Refused { kind: ErrorKind::Unsupported, .. }) => {}
                Err(error) => {
                    tracing::info!(vm = %id, %error, "its clock is late by the pause of its branch")
                }
            }
        });
    }

    /// The writable disks that are files of the user's; every one must be of a kind that can be branched.
    fn own_disks(&self, known: &VmFiles) -> Result<Vec<UserDisk>, ServiceError> {
        let mut own = Vec::new();
        for disk in self.record.template.extra_disks.iter().filter(|disk| !disk.read_only) {
            let serial = disk.name.to_string();
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

    /// Gives the user's disk files what the VM wrote since they were branched. The VM has no machine.
    pub(super) async fn write_back(&self) -> Result<(), ServiceError> {
        self.write_back_or_give_up(false).await
    }

    /// The same; a file that was moved away gives up what the VM wrote.
    pub(super) async fn write_back_or_give_up(&self, give_up_missing: bool) -> Result<(), ServiceError> {
        if self.record.template.extra_disks.iter().all(|disk| disk.read_only) {
            return Ok(());
        }
        self.shared.ports.vm_storage.write_back(&self.record.id, give_up_missing).await?;
        // The copies that branches were made of may be nobody's now.
        self.shared.litter.notify_one();
        Ok(())
    }

    /// The same at the end of a machine: what fails now is done before the next start, or at the removal.
    pub(super) async fn write_back_or_log(&self) {
        if let Err(error) = self.write_back().await {
            tracing::warn!(vm = %self.record.id, %error, "the VM keeps what it wrote to its disks until then");
        }
    }

    /// Refuses a state that this host cannot load, before the present is given up for it.
    pub(super) async fn check_loadable(&self, source: &BranchSource) -> Result<(), ServiceError> {
        let description = &source.description;
        let here = self.shared.ports.hypervisor.compatibility(description.discovery).await?;
        let here = here.ok_or(ServiceError::NoBranching)?;
        for (what, needed) in &description.compatibility {
            let found = here.get(what).cloned().unwrap_or_else(|| "nothing known".to_owned());
            if found != *needed {
                let (what, needed) = (what.clone(), needed.clone());
                return Err(microvm_ports::LaunchError::Incompatible { what, needed, here: found }.into());
            }
        }
        Ok(())
    }

    /// Puts the VM back to a state: what it did since is gone. It runs afterwards.
    pub(super) async fn rollback(&mut self, source: BranchSource, epoch: u64) -> Result<(), ServiceError> {
        self.permitted(Work::Rollback)?;
        self.check_loadable(&source).await?;
        if self.record.phase().has_machine() {
            self.request(LifecycleEvent::Stop).await?;
            let ended = self.end_machine(None).await;
            self.still_lives(ended).await?;
            self.note(LifecycleEvent::Stopped, None).await;
        }
        self.end_last_machine().await?;
        let files = self.shared.ports.snapshots.reset_vm_files(&self.record.id, &source).await?;
        self.record.epoch = self.record.epoch.max(epoch);
        let slept = self.record.life.give_up_sleep();
        self.request(LifecycleEvent::Start).await?;
        self.end_sleep(slept).await;
        self.bring_up_after_request(Some((source, files))).await
    }
}

/// Makes a VM's disks independent of the layers between their tops and their lowest files.
async fn flatten(
    shared: &Shared,
    id: &VmId,
    machine: &dyn Machine,
    files: &VmFiles,
) -> Result<(), ServiceError> {
    let Some(brancher) = machine.brancher() else { return Ok(()) };
    for disk in std::iter::once(&files.scratch).chain(&files.own) {
        // The VMM says which file it was: the newest one that was prepared may not be in use.
        let Some(top) = brancher.flatten(&disk.serial).await? else { continue };
        shared.ports.snapshots.note_flattened(id, Utf8Path::new(&top)).await?;
        shared.litter.notify_one();
        tracing::info!(vm = %id, disk = disk.serial, layers = disk.backing.len(), "made independent of its layers");
    }
    Ok(())
}
