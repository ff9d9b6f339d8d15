//! Snapshots, restores and forks.

use std::time::Duration;

use hyper::Method;
use microvm_api::progress::ProgressLine;
use microvm_api::query::encode;
use microvm_api::snapshot::{
    BegunSnapshot, Cleaned, CreateSnapshot, ForkVm, Forked, GoldenList, GoldenVersion, RestoreSnapshot,
    Restored, Snapshot, SnapshotFile, SnapshotList, SnapshotStatistics, Verification,
};
use microvm_types::VmRef;

use crate::client::Client;
use crate::error::ClientError;
use crate::lines::Lines;

/// Path of a snapshot whose VM does not matter.
fn path_of(snapshot: &str) -> String {
    format!("/snapshots/-/{}", encode(snapshot.as_bytes()))
}

/// Each method is one request; see the REST reference for what it does. All fail with [`ClientError`].
#[expect(clippy::missing_errors_doc, reason = "said once for all above")]
impl Client {
    /// Forks a running VM.
    pub async fn fork_vm(&self, vm: &VmRef, request: &ForkVm) -> Result<Forked, ClientError> {
        self.json(Method::POST, &format!("/vms/{vm}/fork"), Some(request), "forking a VM").await
    }

    /// Takes a snapshot; answers when every byte is safe.
    pub async fn create_snapshot(
        &self,
        vm: &VmRef,
        request: &CreateSnapshot,
    ) -> Result<Snapshot, ClientError> {
        self.json(Method::POST, &format!("/snapshots/{vm}"), Some(request), "taking a snapshot").await
    }

    /// Takes a snapshot; answers when the VM goes on.
    pub async fn begin_snapshot(
        &self,
        vm: &VmRef,
        request: &CreateSnapshot,
    ) -> Result<BegunSnapshot, ClientError> {
        let request = CreateSnapshot { wait: false, ..request.clone() };
        self.json(Method::POST, &format!("/snapshots/{vm}"), Some(&request), "taking a snapshot").await
    }

    /// Snapshots, oldest first: of one VM or of all, golden ones too if asked.
    pub async fn list_snapshots(
        &self,
        vm: Option<&VmRef>,
        golden: bool,
    ) -> Result<SnapshotList, ClientError> {
        let of_vm = vm.map_or_else(String::new, |vm| format!("&vm={vm}"));
        self.get(&format!("/snapshots?golden={golden}{of_vm}"), "listing snapshots").await
    }

    /// One snapshot by id or name.
    pub async fn snapshot(&self, snapshot: &str) -> Result<Snapshot, ClientError> {
        self.get(&path_of(snapshot), "reading a snapshot").await
    }

    /// Removes a snapshot, with those that build on it if `cascade`.
    pub async fn remove_snapshot(&self, snapshot: &str, cascade: bool) -> Result<(), ClientError> {
        let path = format!("{}?cascade={cascade}", path_of(snapshot));
        self.empty(Method::DELETE, &path, None::<&()>, "removing a snapshot").await
    }

    /// Makes new VMs of a snapshot, or puts its VM back in time.
    pub async fn restore(&self, snapshot: &str, request: &RestoreSnapshot) -> Result<Restored, ClientError> {
        self.json(Method::POST, &format!("{}/restore", path_of(snapshot)), Some(request), "restoring").await
    }

    /// Puts a VM back to a snapshot of it.
    pub async fn rollback(&self, vm: &VmRef, snapshot: &str) -> Result<Restored, ClientError> {
        let path = format!("/snapshots/{vm}/{}/restore", encode(snapshot.as_bytes()));
        self.json(Method::POST, &path, Some(&RestoreSnapshot::default()), "rolling back").await
    }

    /// Reads every byte of a snapshot.
    pub async fn verify_snapshot(&self, snapshot: &str) -> Result<Verification, ClientError> {
        let path = format!("{}/verify", path_of(snapshot));
        self.json(Method::POST, &path, None::<&()>, "verifying a snapshot").await
    }

    /// Removes old snapshots: with `named` also those that somebody gave a name.
    pub async fn prune_snapshots(
        &self,
        keep: Option<usize>,
        older_than: Option<Duration>,
        named: bool,
    ) -> Result<Cleaned, ClientError> {
        let mut query = Vec::new();
        query.extend(keep.map(|keep| format!("keep={keep}")));
        query.extend(older_than.map(|age| format!("older_than_seconds={}", age.as_secs())));
        query.extend(named.then(|| "named=true".to_owned()));
        let path = format!("/snapshots/cleanup?{}", query.join("&"));
        self.json(Method::POST, &path, None::<&()>, "removing old snapshots").await
    }

    /// All snapshots together.
    pub async fn snapshot_statistics(&self) -> Result<SnapshotStatistics, ClientError> {
        self.get("/snapshots/statistics", "counting snapshots").await
    }

    /// Versions of what a template boots to, oldest first.
    pub async fn golden_versions(&self, template: &str) -> Result<GoldenList, ClientError> {
        let path = format!("/templates/{}/golden", encode(template.as_bytes()));
        self.get(&path, "listing golden snapshots").await
    }

    /// Boots a template anew for all VMs to come.
    pub async fn update_golden(&self, template: &str) -> Result<GoldenVersion, ClientError> {
        let path = format!("/templates/{}/golden/update", encode(template.as_bytes()));
        self.json(Method::POST, &path, None::<&()>, "making a golden snapshot").await
    }

    /// Goes back to the version before.
    pub async fn rollback_golden(&self, template: &str) -> Result<GoldenVersion, ClientError> {
        let path = format!("/templates/{}/golden/rollback", encode(template.as_bytes()));
        self.json(Method::POST, &path, None::<&()>, "going back to a golden snapshot").await
    }

    /// Writes a snapshot to a file of the server's host.
    pub async fn export_snapshot(
        &self,
        snapshot: &str,
        file: &SnapshotFile,
    ) -> Result<Lines<ProgressLine>, ClientError> {
        let path = format!("{}/export", path_of(snapshot));
        Ok(Lines::new(self.send_json(Method::POST, &path, Some(file), "exporting a snapshot").await?))
    }

    /// Takes in an exported snapshot.
    pub async fn import_snapshot(&self, file: &SnapshotFile) -> Result<Lines<ProgressLine>, ClientError> {
        let response = self.send_json(Method::POST, "/snapshots/import", Some(file), "importing a snapshot");
        Ok(Lines::new(response.await?))
    }
}
