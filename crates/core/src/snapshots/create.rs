//! Taking a snapshot.

use microvm_ports::Progress;
use microvm_types::snapshot::SnapshotPurpose;
use microvm_types::{Name, SnapshotId, VmRef};
use tokio::sync::oneshot;

use super::index::Snapshot;
use crate::actor::{Command, SnapshotOrder};
use crate::error::ServiceError;
use crate::service::{Shared, VmService};

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

/// Gives a reserved name back when dropped before the snapshot is there.
pub(super) struct NameGuard<'a> {
    shared: &'a Shared,
    name: Option<Name>,
}

impl<'a> NameGuard<'a> {
    pub(super) fn reserve(shared: &'a Shared, name: &Name, id: &SnapshotId) -> Result<Self, ServiceError> {
        shared.snapshots.reserve(name, id)?;
        Ok(Self { shared, name: Some(name.clone()) })
    }

    pub(super) fn keep(mut self, snapshot: Snapshot) {
        self.name = None;
        self.shared.snapshots.insert(snapshot);
    }
}

impl Drop for NameGuard<'_> {
    fn drop(&mut self) {
        if let Some(name) = self.name.take() {
            self.shared.snapshots.release(&name);
        }
    }
}

impl VmService {
    /// Takes a snapshot of a running or paused VM, which goes on after some milliseconds; returns when every byte is safe.
    /// `taken` is told when the VM goes on. If the VM has as many snapshots as are allowed, the oldest one goes that
    /// nothing builds on.
    ///
    /// # Errors
    /// See [`ServiceError`]; nothing is listed then.
    pub async fn create_snapshot(
        &self,
        vm: &VmRef,
        request: SnapshotRequest,
        progress: Progress,
    ) -> Result<Snapshot, ServiceError> {
        let record = self.get(vm)?.record;
        let id = self.shared.ports.new_snapshot_id();
        let name = match request.name {
            Some(name) => name,
            None => made_up(&record.name, &id)?,
        };
        let guard = NameGuard::reserve(&self.shared, &name, &id)?;
        let (taken, _) = oneshot::channel();
        let order = SnapshotOrder {
            id,
            name,
            description: request.description,
            purpose: SnapshotPurpose::User,
            full: request.full,
            stay_paused: false,
            progress,
            taken,
        };
        let written = self.ask(vm, |reply| Command::Snapshot { order, reply }).await?;
        let snapshot = Snapshot { record: written.record, info: written.info };
        guard.keep(snapshot.clone());
        self.drop_oldest(&record.id).await;
        Ok(snapshot)
    }
}

/// The VM's name, shortened, and the last characters of the id.
fn made_up(vm: &Name, id: &SnapshotId) -> Result<Name, ServiceError> {
    let end = &id.as_str()[id.as_str().len() - 6..];
    let head: String = vm.as_str().chars().take(24).collect();
    format!("{}-{end}", head.trim_end_matches(['-', '_'])).parse().map_err(
        |error: microvm_types::NameError| ServiceError::Invalid { field: "name", reason: error.to_string() },
    )
}
