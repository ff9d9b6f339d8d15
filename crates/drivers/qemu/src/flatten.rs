//! Shortening the chain of layers below a disk while its machine runs.

use std::time::Duration;

use microvm_ports::{BranchError, MachineError};
use serde_json::{Value, json};

use crate::branch::Branching;
use crate::disks;

/// How long a job may take to end after it was told to.
const CANCEL_ROUNDS: u32 = 500;
const CANCEL_REST: Duration = Duration::from_millis(10);

fn job_of(index: usize) -> String {
    format!("flatten-{}", disks::first_node(index))
}

impl Branching {
    /// Copies what the layers between the top and the lowest file hold into the top, then forgets those layers.
    pub(crate) async fn flatten_disk(&self, serial: &str) -> Result<(), BranchError> {
        let index = *self.saving.disks.get(serial).ok_or_else(|| BranchError::Disk {
            serial: serial.to_owned(),
            detail: "there is no such disk".to_owned(),
        })?;
        let blocks = self.call("list its disks", "query-block", json!({})).await?;
        let Some((top, lowest)) = top_and_lowest(&blocks, index) else { return Ok(()) };
        let job = job_of(index);
        let mut ended = self.qmp.jobs();
        let wish = json!({ "job-id": job, "device": top, "base-node": lowest });
        self.call("flatten a disk", "block-stream", wish).await?;
        let outcome = ended
            .wait_for(|last| last.as_ref().is_some_and(|(id, _)| *id == job))
            .await
            .map_err(|_| refused("its control socket closed".to_owned()))?
            .clone();
        match outcome {
            Some((_, None)) => {}
            Some((_, Some(error))) => return Err(refused(error).into()),
            None => return Err(refused("nobody tells how it ended".to_owned()).into()),
        }
        self.drop_old_tops(index, &top).await?;
        Ok(())
    }

    /// Ends a job that is under way on any disk, so that disks can be switched.
    pub(crate) async fn stop_flattening(&self) -> Result<(), MachineError> {
        for _ in 0..CANCEL_ROUNDS {
            let jobs = self.call("list its jobs", "query-block-jobs", json!({})).await?;
            let ours: Vec<&str> = jobs
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(|job| job["device"].as_str())
                .filter(|id| id.starts_with("flatten-"))
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
        Err(MachineError::Timeout { action: "stop flattening", after: CANCEL_REST * CANCEL_ROUNDS })
    }

    /// Nodes that were tops once and have no user any more.
    async fn drop_old_tops(&self, index: usize, top: &str) -> Result<(), MachineError> {
        let flat = json!({ "flat": true });
        let nodes = self.call("list its block nodes", "query-named-block-nodes", flat).await?;
        let mut old: Vec<String> = nodes
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|node| node["node-name"].as_str())
            .filter(|name| *name != top && disks::index_of(name) == Some(index))
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

/// Names of the node a disk writes to and of the lowest node of its chain; `None` if nothing lies between.
fn top_and_lowest(blocks: &Value, index: usize) -> Option<(String, String)> {
    let block = blocks
        .as_array()?
        .iter()
        .find(|block| block["inserted"]["node-name"].as_str().and_then(disks::index_of) == Some(index))?;
    let top = block["inserted"]["node-name"].as_str()?.to_owned();
    let mut image = &block["inserted"]["image"];
    let mut depth = 0;
    while image["backing-image"].is_object() {
        image = &image["backing-image"];
        depth += 1;
    }
    (depth > 1).then(|| (top, disks::lowest_node(index)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_lies_between_is_flattened() {
        let image = |layers: usize| {
            (0..layers).fold(
                json!({ "filename": "x" }),
                |below, _| json!({ "filename": "y", "backing-image": below }),
            )
        };
        let blocks = |layers| json!([{ "inserted": { "node-name": "disk0" } }, { "inserted": { "node-name": "disk1.3", "image": image(layers) } }]);
        assert_eq!(top_and_lowest(&blocks(1), 1), None);
        let found = top_and_lowest(&blocks(2), 1);
        assert_eq!(found, Some(("disk1.3".to_owned(), "disk1-lowest".to_owned())));
        assert_eq!(top_and_lowest(&blocks(5), 2), None);
    }
}
