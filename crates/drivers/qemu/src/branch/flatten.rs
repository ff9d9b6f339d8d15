//! Shortening the chain of layers below a disk while its machine runs.

use std::time::Duration;

use microvm_ports::{BranchError, MachineError};
use serde_json::json;

use super::Branching;
use crate::control::qmp::EndedJob;
use crate::disks;

/// Time that a cancelled job has to end.
const CANCEL_DEADLINE: Duration = Duration::from_secs(10);
const CANCEL_REST: Duration = Duration::from_millis(10);
/// Time limit for flattening a disk; one that takes longer stays as it is.
const FLATTEN_DEADLINE: Duration = Duration::from_secs(300);
/// Most nodes of one disk that are looked at: the VMM may be under its guest's control.
const NODES_MAX: usize = 256;

/// Ids of our jobs begin with this.
const JOB: &str = "flatten-";

impl Branching {
    /// Copies the layers between the overlay and the lowest file into the overlay, then forgets those layers. Returns the
    /// file name of the overlay that holds everything now; `None` if there was nothing to do.
    pub(crate) async fn flatten_disk(&self, serial: &str) -> Result<Option<String>, BranchError> {
        let index = *self.saving.disks.get(serial).ok_or_else(|| BranchError::Disk {
            serial: serial.to_owned(),
            detail: "there is no such disk".to_owned(),
        })?;
        self.stop_flattening().await?;
        let Some(overlay) = self.long_chain(index).await? else { return Ok(None) };
        let lowest = self.lowest(index).await?;
        let file = self.file_of(serial, &overlay).await?;
        // An id of its own: the end of an earlier job is never taken for the end of this one.
        let mut random = [0; 8];
        getrandom::fill(&mut random).map_err(|error| refused(error.to_string()))?;
        let job = format!("{JOB}{}-{:016x}", disks::first_node(index), u64::from_le_bytes(random));
        let mut ended = self.qmp.jobs();
        let wish = json!({ "job-id": job, "device": overlay, "base-node": lowest });
        self.call("flatten a disk", "block-stream", wish).await?;
        let is_ours = |last: &EndedJob| last.as_ref().is_some_and(|(id, _)| *id == job);
        let outcome = async { ended.wait_for(is_ours).await.map(|last| last.clone()) };
        let outcome = match tokio::time::timeout(FLATTEN_DEADLINE, outcome).await {
            Ok(outcome) => outcome.map_err(|_| refused("its control socket closed".to_owned()))?,
            Err(_) => {
                self.stop_flattening().await?;
                return Err(
                    MachineError::Timeout { action: "flatten a disk", after: FLATTEN_DEADLINE }.into()
                );
            }
        };
        if let Some((_, Some(error))) = outcome {
            return Err(refused(error).into());
        }
        // QEMU may hold copied data in its caches; a pause of the processors writes them out.
        self.flush().await?;
        if self.long_chain(index).await?.is_some() {
            return Err(refused("the layers are still there".to_owned()).into());
        }
        self.drop_old_overlays(index, &overlay, &lowest).await?;
        Ok(Some(file))
    }

    async fn long_chain(&self, index: usize) -> Result<Option<String>, MachineError> {
        let blocks = self.call("list its disks", "query-block", json!({})).await?;
        Ok(disks::overlay_of_long_chain(&blocks, index))
    }

    /// Name of the lowest node of a disk: a disk that began without layers began with it.
    async fn lowest(&self, index: usize) -> Result<String, MachineError> {
        let flat = json!({ "flat": true });
        let nodes = self.call("list its block nodes", "query-named-block-nodes", flat).await?;
        let lowest = disks::lowest_node(index);
        let known = nodes.as_array().into_iter().flatten().any(|node| node["node-name"] == json!(lowest));
        Ok(if known { lowest } else { disks::first_node(index) })
    }

    async fn flush(&self) -> Result<(), MachineError> {
        let status = self.call("tell its status", "query-status", json!({})).await?;
        let stopped = self.call("empty its caches", "stop", json!({})).await;
        if status["running"].as_bool() == Some(true) {
            self.call("resume", "cont", json!({})).await?;
        }
        stopped.map(|_| ())
    }

    /// Ends a job that is under way on any disk, so that disks can be switched.
    pub(crate) async fn stop_flattening(&self) -> Result<(), MachineError> {
        let stopping = async {
            loop {
                let jobs = self.call("list its jobs", "query-block-jobs", json!({})).await?;
                let ours: Vec<&str> = jobs
                    .as_array()
                    .into_iter()
                    .flatten()
                    .filter_map(|job| job["device"].as_str())
                    .filter(|id| id.starts_with(JOB))
                    .take(NODES_MAX)
                    .collect();
                if ours.is_empty() {
                    return Ok(());
                }
                for job in ours {
                    // One that is at its end cannot be cancelled; it is gone in the next round.
                    let wish = json!({ "device": job, "force": true });
                    let _ = self.call("stop flattening", "block-job-cancel", wish).await;
                }
                tokio::time::sleep(CANCEL_REST).await;
            }
        };
        let timeout = MachineError::Timeout { action: "stop flattening", after: CANCEL_DEADLINE };
        tokio::time::timeout(CANCEL_DEADLINE, stopping).await.unwrap_or(Err(timeout))
    }

    /// Removes nodes that were overlays once and have no user any more.
    async fn drop_old_overlays(&self, index: usize, overlay: &str, lowest: &str) -> Result<(), MachineError> {
        let flat = json!({ "flat": true });
        let nodes = self.call("list its block nodes", "query-named-block-nodes", flat).await?;
        let mut old: Vec<String> = nodes
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|node| node["node-name"].as_str())
            .filter(|name| *name != overlay && *name != lowest && disks::index_of(name) == Some(index))
            .take(NODES_MAX)
            .map(str::to_owned)
            .collect();
        // Newest first: each has the one before it below.
        old.sort_by_key(|name| std::cmp::Reverse(disks::number_of(name)));
        for node in old {
            // One that is still used by something else stays; it costs an open file.
            let _ = self.call("forget a layer", "blockdev-del", json!({ "node-name": node })).await;
        }
        Ok(())
    }
}

fn refused(detail: String) -> MachineError {
    MachineError::Refused { action: "flatten a disk", detail }
}
