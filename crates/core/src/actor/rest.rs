//! Rest: a VM that nobody uses stands still, or sleeps on disk, until the next request wakes it.

use microvm_ports::Progress;
use microvm_ports::snapshot::BranchSource;
use microvm_types::Phase;
use microvm_types::lifecycle::LifecycleEvent;
use microvm_types::snapshot::SnapshotPurpose;
use microvm_types::vm::Rest;
use tokio::sync::oneshot;

use super::{SnapshotOrder, VmActor};
use crate::error::ServiceError;

impl VmActor {
    /// Stands still until somebody wants it.
    pub(super) async fn doze(&mut self) -> Result<(), ServiceError> {
        self.record.rest = Some(Rest::Paused);
        let paused = self.pause().await;
        if paused.is_err() {
            self.record.rest = None;
        }
        paused
    }

    /// Goes to disk with its memory; the machine ends. The next start or request goes on where it was.
    pub(super) async fn hibernate(&mut self) -> Result<(), ServiceError> {
        if self.record.phase == Phase::Stopped && self.record.rest.is_some() {
            return Ok(());
        }
        let id = self.shared.ports.new_snapshot_id();
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
        let asleep = async {
            self.snapshot(order).await?.keep()?;
            self.record.rest = Some(Rest::Asleep { snapshot: id.clone() });
            self.request(LifecycleEvent::Stop).await
        };
        if let Err(error) = asleep.await {
            self.record.rest = None;
            self.forget_sleep(&id).await;
            self.awake_again().await;
            return Err(error);
        }
        self.end_machine(None).await;
        self.note(LifecycleEvent::Stopped, None).await;
        Ok(())
    }

    /// A machine that was to sleep and does not goes on.
    async fn awake_again(&mut self) {
        let running = self.record.phase == Phase::Running;
        if let (true, Some(machine)) = (running, self.machine.clone())
            && let Err(error) = machine.resume().await
        {
            tracing::error!(vm = %self.record.id, %error, "it stands still after it could not be put to sleep");
        }
        if let Some(guest) = &self.guest {
            guest.expect_heartbeats(running);
        }
    }

    /// Where a sleeping VM goes on; `None` if it does not sleep.
    pub(super) async fn dream(&self) -> Result<Option<BranchSource>, ServiceError> {
        let Some(Rest::Asleep { snapshot }) = &self.record.rest else { return Ok(None) };
        let snapshots = &self.shared.ports.snapshots;
        let source = snapshots.snapshot_source(snapshot, 1).await?;
        snapshots.reset_vm_files(&self.record.id, &source).await?;
        Ok(Some(source))
    }

    /// It runs: what it slept on is not needed any more.
    pub(super) async fn woken(&mut self) {
        if let Some(Rest::Asleep { snapshot }) = self.record.rest.take() {
            self.save_or_log(None).await;
            self.forget_sleep(&snapshot).await;
        }
    }

    /// Removes what a VM slept on, if it does.
    pub(super) async fn end_sleep(&mut self) {
        if let Some(Rest::Asleep { snapshot }) = self.record.rest.take() {
            self.forget_sleep(&snapshot).await;
        }
    }

    async fn forget_sleep(&self, snapshot: &microvm_types::SnapshotId) {
        // A later snapshot of this VM may build on it: that gets what it needs of it.
        let snapshots = &self.shared.ports.snapshots;
        match snapshots.absorb_snapshot(snapshot, Progress::ignored()).await {
            Ok(changed) => changed.into_iter().for_each(|info| self.shared.snapshots.renew(info)),
            Err(error) => tracing::warn!(vm = %self.record.id, %error, "what it slept on stays for now"),
        }
    }
}
