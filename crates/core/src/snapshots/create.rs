//! Taking a snapshot.

use std::sync::Arc;
use std::time::Duration;

use microvm_ports::Progress;
use microvm_ports::branch::BranchTimes;
use microvm_types::snapshot::{SnapshotPurpose, SnapshotRecord};
use microvm_types::{Name, SnapshotId, VmRef};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::index::Snapshot;
use crate::actor::{Command, SnapshotOrder, check_branchable};
use crate::error::ServiceError;
use crate::service::{Shared, VmService};
use crate::shares::check_whole;

/// What a snapshot is to be.
#[derive(Debug, Clone, Default)]
pub struct SnapshotRequest {
    /// Its name; `None`: one is made of the VM's name and the time.
    pub name: Option<Name>,
    /// What its owner writes about it.
    pub description: String,
    /// Whole in itself instead of building on its parent.
    pub full: bool,
}

/// A snapshot that was taken and is being written.
#[derive(Debug, Clone)]
pub struct BegunSnapshot {
    /// Its id.
    pub id: SnapshotId,
    /// Its name.
    pub name: Name,
    /// How long the VM stood still.
    pub pause: Duration,
}

/// Gives a reserved name back when dropped before the snapshot is there.
pub(super) struct NameGuard {
    shared: Arc<Shared>,
    name: Option<Name>,
}

impl NameGuard {
    pub(super) fn reserve(shared: &Arc<Shared>, name: &Name, id: &SnapshotId) -> Result<Self, ServiceError> {
        shared.snapshots.reserve(name, id)?;
        Ok(Self { shared: Arc::clone(shared), name: Some(name.clone()) })
    }

    pub(super) fn keep(mut self, snapshot: Snapshot) {
        self.name = None;
        self.shared.snapshots.insert(snapshot);
    }
}

impl Drop for NameGuard {
    fn drop(&mut self) {
        if let Some(name) = self.name.take() {
            self.shared.snapshots.release(&name);
        }
    }
}

impl VmService {
    /// Takes a snapshot of a running or paused VM, which goes on after some milliseconds; returns when every byte is safe.
    /// If the VM has as many snapshots without names of their own as are allowed, the oldest of them goes that nothing of
    /// another VM builds on; the same for named ones if they are limited. If the future is dropped the snapshot is written all the same.
    ///
    /// # Errors
    /// See [`ServiceError`]; nothing is listed then.
    pub async fn create_snapshot(
        &self,
        vm: &VmRef,
        request: SnapshotRequest,
        progress: Progress,
    ) -> Result<Snapshot, ServiceError> {
        let (_, _, writing) = self.order_snapshot(vm, request, progress, oneshot::channel().0)?;
        writing.await.map_err(|_| ServiceError::ShuttingDown)?
    }

    /// The same, but returns as soon as the VM goes on. The snapshot is listed when every byte is safe; if that fails, the
    /// log tells and it never is.
    ///
    /// # Errors
    /// Those of the branch.
    pub async fn begin_snapshot(
        &self,
        vm: &VmRef,
        request: SnapshotRequest,
    ) -> Result<BegunSnapshot, ServiceError> {
        let (taken, told) = oneshot::channel();
        let (id, name, writing) = self.order_snapshot(vm, request, Progress::ignored(), taken)?;
        match told.await {
            Ok(times) => Ok(BegunSnapshot { id, name, pause: times.pause }),
            // It was never taken: the order ended before.
            Err(_) => {
                let written = writing.await.map_err(|_| ServiceError::ShuttingDown)??;
                let pause = Duration::from_micros(written.record.pause_us);
                Ok(BegunSnapshot { id, name, pause })
            }
        }
    }

    /// Has a snapshot taken and written by a task of its own.
    #[allow(clippy::type_complexity, reason = "used right above and nowhere else")]
    fn order_snapshot(
        &self,
        vm: &VmRef,
        request: SnapshotRequest,
        progress: Progress,
        taken: oneshot::Sender<BranchTimes>,
    ) -> Result<(SnapshotId, Name, JoinHandle<Result<Snapshot, ServiceError>>), ServiceError> {
        self.refuse_waiting(vm)?;
        let record = self.get(vm)?.record;
        check_branchable(record.phase())?;
        check_whole(&record.template)?;
        let id = self.shared.new_snapshot_id();
        let name = match request.name {
            Some(name) => name,
            None => made_up(&record.name, &id)?,
        };
        let guard = NameGuard::reserve(&self.shared, &name, &id)?;
        let order = SnapshotOrder {
            id: id.clone(),
            name: name.clone(),
            description: request.description,
            purpose: SnapshotPurpose::User,
            full: request.full,
            stay_paused: false,
            progress,
            taken,
        };
        let service = Self { shared: Arc::clone(&self.shared) };
        let vm = VmRef::from(record.id.clone());
        let writing = self.shared.actors.spawn(async move {
            let written = service.ask(&vm, |reply| Command::Snapshot { order, reply }).await;
            let written = written.inspect_err(|error| {
                tracing::warn!(%vm, %error, "a snapshot was not written");
            })?;
            let snapshot = written.keep()?;
            guard.keep(snapshot.clone());
            if service.shared.settings.prove_snapshots
                && let Err(cause) = service.prove(&snapshot.record.id).await
            {
                let name = snapshot.record.name;
                tracing::error!(snapshot = %name, %cause, "no VM came up from a snapshot");
                return Err(ServiceError::UnprovenSnapshot { name, cause: Box::new(cause) });
            }
            // Not before it is proved: the oldest may be the last good one.
            service.drop_oldest(&record.id).await;
            Ok(snapshot)
        });
        Ok((id, name, writing))
    }
}

/// Whether somebody gave it its name: limits of number and age are for those that nobody named.
pub(super) fn is_named(record: &SnapshotRecord) -> bool {
    made_up(&record.vm_name, &record.id).is_ok_and(|made_up| made_up != record.name)
}

/// The VM's name, shortened, and the last characters of the id.
fn made_up(vm: &Name, id: &SnapshotId) -> Result<Name, ServiceError> {
    let end = &id.as_str()[id.as_str().len() - 6..];
    let head: String = vm.as_str().chars().take(24).collect();
    format!("{}-{end}", head.trim_end_matches(['-', '_'])).parse().map_err(
        |error: microvm_types::NameError| ServiceError::Invalid { field: "name", reason: error.to_string() },
    )
}
