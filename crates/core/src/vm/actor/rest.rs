//! Rest: a VM that nobody uses stands still, or sleeps on disk, until the next request wakes it.

use microvm_ports::snapshot::BranchSource;
use microvm_ports::storage::VmFiles;
use microvm_ports::{Progress, StorageError};
use microvm_types::lifecycle::{LifecycleEvent, Work};
use microvm_types::snapshot::SnapshotPurpose;
use microvm_types::vm::Rest;
use microvm_types::{Phase, SnapshotId};
use tokio::sync::oneshot;

use super::VmActor;
use crate::error::ServiceError;
use crate::launch::shares::check_whole;
use crate::undo;
use crate::vm::command::SnapshotOrder;

impl VmActor {
    /// Stands still until somebody wants it.
    pub(super) async fn doze(&mut self) -> Result<(), ServiceError> {
        let paused = self.pause(|life| life.pause_because(Rest::Paused)).await;
        if paused.is_ok() && self.activity.idle_since_ms().is_none() {
            // Somebody came at this very moment, and may have seen it awake.
            return self.resume().await;
        }
        paused
    }

    /// Goes to disk with its memory; the machine ends. The next start or request goes on where it was.
    pub(super) async fn hibernate(&mut self) -> Result<(), ServiceError> {
        if self.record.phase() == Phase::Hibernated {
            return Ok(());
        }
        self.permitted(Work::Hibernate)?;
        check_whole(&self.record.template)?;
        let id = self.shared.new_snapshot_id();
        let (taken, _) = oneshot::channel();
        let order = SnapshotOrder {
            name: format!("sleep-{id}").parse().map_err(|error: microvm_types::NameError| {
                ServiceError::Invalid { field: "name", reason: error.to_string() }
            })?,
            description: format!("the VM {} asleep", self.record.name),
            purpose: SnapshotPurpose::Hibernation,
            full: false,
            stay_paused: true,
            progress: Progress::ignored(),
            taken,
            id: id.clone(),
        };
        if let Some(guest) = &self.guest {
            guest.expect_heartbeats(false);
        }
        // Nobody gets a guest that is going to stand still; who asks now waits for how it ends.
        self.publish.send_modify(|now| now.guest = None);
        let asleep = async {
            let (_, asleep) = undo::keep(self.snapshot(order).await?);
            self.shared.snapshots.insert(asleep);
            let id = id.clone();
            self.request_by(|life| life.fall_asleep(id)).await
        };
        if let Err(error) = asleep.await {
            self.forget_sleep(&id).await;
            self.awake_again().await;
            self.publish_now();
            return Err(error);
        }
        self.end_machine_or_log().await;
        self.note(LifecycleEvent::Hibernated, None).await;
        Ok(())
    }

    /// A machine that was to sleep and does not goes on.
    async fn awake_again(&mut self) {
        let running = self.record.phase() == Phase::Running;
        if let (true, Some(machine)) = (running, self.machine.clone())
            && let Err(error) = machine.resume().await
        {
            tracing::error!(vm = %self.record.id, %error, "it stands still after it could not be put to sleep");
        }
        if let Some(guest) = &self.guest {
            guest.expect_heartbeats(running);
        }
        if running {
            self.tell_time().await;
        }
    }

    /// Where a sleeping VM goes on, and its files there; `None` if it does not sleep.
    pub(super) async fn dream(&self) -> Result<Option<(BranchSource, VmFiles)>, ServiceError> {
        let Some(snapshot) = self.record.life.asleep() else { return Ok(None) };
        let snapshots = &self.shared.ports.snapshots;
        let waken = async {
            let source = snapshots.snapshot_source(snapshot, 1).await?;
            // Before its disk is put back on what cannot be loaded.
            self.check_loadable(&source).await?;
            Ok::<_, ServiceError>(source)
        };
        let source = match waken.await {
            Err(error @ (ServiceError::Launch(_) | ServiceError::Storage(StorageError::Damaged { .. }))) => {
                return Err(ServiceError::CannotWake {
                    vm: self.record.name.clone(),
                    cause: Box::new(error),
                });
            }
            other => other?,
        };
        let files = snapshots.reset_vm_files(&self.record.id, &source).await?;
        Ok(Some((source, files)))
    }

    /// Removes what a VM slept on, after its record says that it sleeps no more.
    pub(super) async fn end_sleep(&mut self, slept: Option<SnapshotId>) {
        if let Some(snapshot) = slept {
            self.forget_sleep(&snapshot).await;
        }
    }

    async fn forget_sleep(&self, snapshot: &SnapshotId) {
        // A later snapshot of this VM may build on it: that gets what it needs of it.
        let _alone = self.shared.absorbing.lock().await;
        let snapshots = &self.shared.ports.snapshots;
        match snapshots.absorb_snapshot(snapshot, Progress::ignored()).await {
            Ok(changed) => {
                self.shared.snapshots.remove(snapshot);
                changed.into_iter().for_each(|info| self.shared.snapshots.renew(info));
                self.shared.litter.notify_one();
            }
            Err(error) => {
                tracing::warn!(vm = %self.record.id, %error, "what it slept on stays until the next start of the server removes it")
            }
        }
    }
}
