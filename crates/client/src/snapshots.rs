//! Snapshots, restores and forks.

use std::time::Duration;

use microvm_api::operation::{SnapshotRef, SnapshotVm, TemplateRef};
use microvm_api::operations::{snapshot, template, vm};
use microvm_api::progress::ProgressLine;
use microvm_api::queries::{CleanUpSnapshots, ListSnapshots, RemoveSnapshot, TakeSnapshot};
use microvm_api::query::RawBytes;
use microvm_api::snapshot::{
    BegunSnapshot, Cleaned, CreateSnapshot, ForkVm, Forked, GoldenList, GoldenVersion, RestoreSnapshot,
    Restored, Snapshot, SnapshotFile, SnapshotList, SnapshotStatistics, Verification,
};
use microvm_types::VmRef;

use crate::call::Made;
use crate::client::Client;
use crate::error::ClientError;
use crate::lines::Lines;

/// Path of a snapshot whose VM does not matter.
fn path_of(snapshot: &str) -> (SnapshotVm, SnapshotRef) {
    (SnapshotVm::any(), snapshot.into())
}

fn unexpected<T>(what: &str) -> Result<T, ClientError> {
    Err(ClientError::Answer(format!("the snapshot {what}")))
}

/// Each method is one request; see the REST reference for what it does. All fail with [`ClientError`].
#[expect(clippy::missing_errors_doc, reason = "said once for all above")]
impl Client {
    /// Forks a running VM.
    pub async fn fork_vm(&self, vm: &VmRef, request: &ForkVm) -> Result<Forked, ClientError> {
        self.tell::<vm::Fork>(vm, request).await
    }

    /// Takes a snapshot; answers when every byte is safe.
    pub async fn create_snapshot(
        &self,
        vm: &VmRef,
        request: &CreateSnapshot,
    ) -> Result<Snapshot, ClientError> {
        // Whatever the caller set: this method promises the finished snapshot.
        let request = CreateSnapshot { wait: true, ..request.clone() };
        match self.call::<snapshot::Create>(vm, &TakeSnapshot::default(), &request).await? {
            Made::Created(snapshot) => Ok(snapshot),
            Made::Accepted(_) => unexpected("was not waited for"),
        }
    }

    /// Takes a snapshot; answers when the VM goes on.
    pub async fn begin_snapshot(
        &self,
        vm: &VmRef,
        request: &CreateSnapshot,
    ) -> Result<BegunSnapshot, ClientError> {
        let request = CreateSnapshot { wait: false, ..request.clone() };
        match self.call::<snapshot::Create>(vm, &TakeSnapshot::default(), &request).await? {
            Made::Accepted(begun) => Ok(begun),
            Made::Created(_) => unexpected("was waited for"),
        }
    }

    /// Snapshots, oldest first: of one VM or of all, golden ones too if asked.
    pub async fn list_snapshots(
        &self,
        vm: Option<&VmRef>,
        golden: bool,
    ) -> Result<SnapshotList, ClientError> {
        let vm = vm.map(|vm| RawBytes(vm.as_str().as_bytes().to_owned()));
        self.call::<snapshot::List>(&(), &ListSnapshots { vm, golden }, ()).await
    }

    /// One snapshot by id or name.
    pub async fn snapshot(&self, snapshot: &str) -> Result<Snapshot, ClientError> {
        self.ask::<snapshot::Get>(&path_of(snapshot)).await
    }

    /// Removes a snapshot, with those that build on it if `cascade`.
    pub async fn remove_snapshot(&self, snapshot: &str, cascade: bool) -> Result<(), ClientError> {
        self.call::<snapshot::Remove>(&path_of(snapshot), &RemoveSnapshot { cascade }, ()).await
    }

    /// Makes new VMs of a snapshot, or puts its VM back in time.
    pub async fn restore(&self, snapshot: &str, request: &RestoreSnapshot) -> Result<Restored, ClientError> {
        self.tell::<snapshot::Restore>(&path_of(snapshot), request).await
    }

    /// Puts a VM back to a snapshot of it.
    pub async fn rollback(&self, vm: &VmRef, snapshot: &str) -> Result<Restored, ClientError> {
        let path = (vm.as_str().into(), snapshot.into());
        self.tell::<snapshot::Restore>(&path, &RestoreSnapshot::default()).await
    }

    /// Reads every byte of a snapshot.
    pub async fn verify_snapshot(&self, snapshot: &str) -> Result<Verification, ClientError> {
        self.ask::<snapshot::Verify>(&path_of(snapshot)).await
    }

    /// Removes old snapshots: with `named` also those that somebody gave a name.
    pub async fn prune_snapshots(
        &self,
        keep: Option<usize>,
        older_than: Option<Duration>,
        named: bool,
    ) -> Result<Cleaned, ClientError> {
        let older_than_seconds = older_than.map(|age| age.as_secs());
        let query = CleanUpSnapshots { days_old: None, older_than_seconds, keep, named };
        self.call::<snapshot::CleanUp>(&(), &query, ()).await
    }

    /// All snapshots together.
    pub async fn snapshot_statistics(&self) -> Result<SnapshotStatistics, ClientError> {
        self.ask::<snapshot::Statistics>(&()).await
    }

    /// Versions of what a template boots to, oldest first.
    pub async fn golden_versions(&self, template: &str) -> Result<GoldenList, ClientError> {
        self.ask::<template::Golden>(&TemplateRef::from(template)).await
    }

    /// Boots a template anew for all VMs to come.
    pub async fn update_golden(&self, template: &str) -> Result<GoldenVersion, ClientError> {
        self.ask::<template::UpdateGolden>(&TemplateRef::from(template)).await
    }

    /// Goes back to the version before.
    pub async fn rollback_golden(&self, template: &str) -> Result<GoldenVersion, ClientError> {
        self.ask::<template::RollBackGolden>(&TemplateRef::from(template)).await
    }

    /// Writes a snapshot to a file of the server's host.
    pub async fn export_snapshot(
        &self,
        snapshot: &str,
        file: &SnapshotFile,
    ) -> Result<Lines<ProgressLine>, ClientError> {
        self.tell::<snapshot::Export>(&path_of(snapshot), file).await
    }

    /// Takes in an exported snapshot.
    pub async fn import_snapshot(&self, file: &SnapshotFile) -> Result<Lines<ProgressLine>, ClientError> {
        self.tell::<snapshot::Import>(&(), file).await
    }
}
