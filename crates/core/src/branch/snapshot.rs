//! Taking a snapshot.

use std::sync::Arc;
use std::time::Duration;

use microvm_ports::Progress;
use microvm_ports::branch::BranchTimes;
use microvm_types::snapshot::SnapshotPurpose;
use microvm_types::{Name, OperationName, SnapshotId, VmRef};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::{Branches, prove};
use crate::error::ServiceError;
use crate::kept::drop_oldest;
use crate::kept::names::{self, made_up};
use crate::launch::shares::check_whole;
use crate::state::Snapshot;
use crate::undo;
use crate::vm::command::{Command, SnapshotOrder, check_branchable};

/// A snapshot to be taken.
#[derive(Debug, Clone, Default)]
pub struct SnapshotRequest {
    /// Its name; `None`: one is made of the VM's name and the time.
    pub name: Option<Name>,
    /// Description by its owner.
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
    /// Length of the pause of the VM.
    pub pause: Duration,
}

impl Branches {
    /// Takes a snapshot of a running or paused VM, or of one that hibernates, which is woken for it. It goes on after
    /// some milliseconds; returns when every byte is safe.
    /// If the VM has as many snapshots without names of their own as are allowed, the oldest of them goes that nothing of
    /// another VM builds on; the same for named ones if they are limited. If the future is dropped the snapshot is written all the same.
    ///
    /// # Errors
    /// See [`ServiceError`]; nothing is listed then.
    pub async fn snapshot(
        &self,
        vm: &VmRef,
        request: SnapshotRequest,
        progress: Progress,
    ) -> Result<Snapshot, ServiceError> {
        self.context.authorise(OperationName::SNAPSHOT_CREATE)?;
        let (_, _, writing) = self.order_snapshot(vm, request, progress, oneshot::channel().0).await?;
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
        self.context.authorise(OperationName::SNAPSHOT_CREATE)?;
        let (taken, told) = oneshot::channel();
        let (id, name, writing) = self.order_snapshot(vm, request, Progress::ignored(), taken).await?;
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
    async fn order_snapshot(
        &self,
        vm: &VmRef,
        request: SnapshotRequest,
        progress: Progress,
        taken: oneshot::Sender<BranchTimes>,
    ) -> Result<(SnapshotId, Name, JoinHandle<Result<Snapshot, ServiceError>>), ServiceError> {
        let handle = self.context.owned(vm)?;
        let record = handle.settled().await?;
        check_branchable(record.phase())?;
        check_whole(&record.template)?;
        let shared = Arc::clone(&self.context.shared);
        let id = shared.new_snapshot_id();
        let name = match request.name {
            Some(name) => name,
            None => made_up(&record.name, &id)?,
        };
        // Two snapshots of one name could be under way at once: the second is refused before it pauses the VM.
        let reserved = names::reserve(&shared, &record.tenant, &name)?;
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
        let context = self.context.clone();
        // A task of its own: a caller that hangs up must not leave half a snapshot.
        let writing = self.context.shared.actors.spawn(async move {
            let written = handle.ask(|reply| Command::Snapshot { order, reply }).await;
            let written = written.inspect_err(|error| {
                tracing::warn!(vm = %record.id, %error, "a snapshot was not written");
            })?;
            let (_, snapshot) = undo::keep(written);
            names::keep(reserved, snapshot.clone());
            if shared.settings.prove_snapshots
                && let Err(cause) = prove(&context, &snapshot).await
            {
                let name = snapshot.record.name;
                tracing::error!(snapshot = %name, %cause, "no VM came up from a snapshot");
                return Err(ServiceError::UnprovenSnapshot { name, cause: Box::new(cause) });
            }
            // Not before it is proved: the oldest may be the last good one.
            drop_oldest(&shared, &record.id).await;
            Ok(snapshot)
        });
        Ok((id, name, writing))
    }
}
