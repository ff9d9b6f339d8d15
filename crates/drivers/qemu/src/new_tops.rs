//! New tops of a machine's disks: opened, handed over to QEMU as descriptors and made known to it, without any effect on
//! the disks until it switches to them.

use std::collections::HashSet;
use std::fs::OpenOptions;
use std::os::fd::AsFd as _;

use camino::Utf8Path;
use microvm_ports::branch::DiskChange;
use microvm_ports::storage::DiskFormat;
use microvm_ports::{BranchError, MachineError};
use serde_json::{Value, json};

use crate::branch::Branching;
use crate::disks;
use crate::waiting;

/// Most sets of descriptors that are removed at once.
const SETS_MAX: usize = 256;

/// A disk whose new top is known to QEMU.
pub(crate) struct Switch {
    pub(crate) node: String,
    pub(crate) overlay: String,
}

impl Branching {
    /// Opens the new tops and makes them known to QEMU, without any effect on the disks yet.
    pub(crate) async fn add_tops(
        &self,
        blocks: &Value,
        tops: &[DiskChange],
    ) -> Result<Vec<Switch>, BranchError> {
        if let Some(serial) =
            self.saving.disks.keys().find(|serial| tops.iter().all(|top| top.serial != **serial))
        {
            return Err(disk_error(serial, "it is writable and has no new top"));
        }
        let mut switches = Vec::new();
        for top in tops {
            let index = *self
                .saving
                .disks
                .get(&top.serial)
                .ok_or_else(|| disk_error(&top.serial, "there is no such disk"))?;
            let node = current_node(blocks, index)
                .ok_or_else(|| disk_error(&top.serial, "the VMM does not name what it writes to"))?;
            let overlay = disks::next_node(&node);
            let set = self.hand_over(top, &overlay).await?;
            let mut description =
                disks::node(DiskFormat::Qcow2, &format!("/dev/fdset/{set}"), false, Value::Null);
            if top.serial == disks::SCRATCH {
                disks::without_flush(&mut description);
            }
            description["node-name"] = json!(overlay);
            let known = self.call("open a disk's new top", "blockdev-add", description).await;
            if let Err(error) = known {
                self.call("forget a descriptor", "remove-fd", json!({ "fdset-id": set })).await?;
                return Err(error.into());
            }
            switches.push(Switch { node, overlay });
        }
        Ok(switches)
    }

    /// Gives QEMU a new top as a set of descriptors, one to read and one to write: it opens a disk again whenever its use
    /// changes. The set is marked with the name of its node.
    async fn hand_over(&self, top: &DiskChange, node: &str) -> Result<Value, BranchError> {
        let open = |write| {
            let opened = OpenOptions::new().read(true).write(write).open(&top.path);
            opened.map_err(|error| disk_error(&top.serial, error.to_string()))
        };
        let (writing, reading) = (open(true)?, open(false)?);
        let action = "take a disk's new top";
        let mark = json!({ "opaque": mark_of(node, &top.path) });
        let added = self.qmp.call_with_descriptor(action, "add-fd", mark, writing.as_fd()).await?;
        let set = added["fdset-id"].clone();
        let beside = json!({ "fdset-id": set, "opaque": mark_of(node, &top.path) });
        self.qmp.call_with_descriptor(action, "add-fd", beside, reading.as_fd()).await?;
        Ok(set)
    }

    /// Name of the file that a node writes to.
    pub(crate) async fn file_of(&self, serial: &str, node: &str) -> Result<String, BranchError> {
        let sets = self.call("list its descriptors", "query-fdsets", json!({})).await?;
        let marks = sets.as_array().into_iter().flatten().filter_map(|set| set["fds"][0]["opaque"].as_str());
        let handed_over = marks.filter_map(|mark| mark.split_once(' ')).find(|(name, _)| *name == node);
        match handed_over {
            Some((_, file)) => Some(file.to_owned()),
            None if disks::number_of(node) == 0 => self.saving.first_tops.get(serial).cloned(),
            None => None,
        }
        .ok_or_else(|| disk_error(serial, "nobody knows which file it writes to"))
    }

    /// Closes what no disk uses: new tops that a server made known and died before it switched to them, and descriptors
    /// of tops that are no disk's any more.
    pub(crate) async fn forget_unused(&self, blocks: &Value) -> Result<(), MachineError> {
        let sets = self.call("list its descriptors", "query-fdsets", json!({})).await?;
        let nodes =
            self.call("list its block nodes", "query-named-block-nodes", json!({ "flat": true })).await?;
        let mut known: HashSet<&str> =
            nodes.as_array().into_iter().flatten().filter_map(|node| node["node-name"].as_str()).collect();
        for node in never_used(blocks, &known) {
            self.call("forget a disk's new top", "blockdev-del", json!({ "node-name": node })).await?;
            known.remove(node);
        }
        let files: HashSet<&str> =
            nodes.as_array().into_iter().flatten().filter_map(|node| node["file"].as_str()).collect();
        let unused = |set: &&Value| match set["fds"][0]["opaque"].as_str() {
            Some(mark) => {
                let node = mark.split(' ').next().unwrap_or_default();
                disks::index_of(node).is_some() && !known.contains(node)
            }
            None => waiting::is_of_a_layer(&set["fdset-id"], &files),
        };
        for set in sets.as_array().into_iter().flatten().filter(unused).take(SETS_MAX) {
            let unused = json!({ "fdset-id": set["fdset-id"] });
            self.call("forget a descriptor", "remove-fd", unused).await?;
        }
        Ok(())
    }
}

fn disk_error(serial: &str, detail: impl Into<String>) -> BranchError {
    BranchError::Disk { serial: serial.to_owned(), detail: detail.into() }
}

/// What a set of descriptors is marked with: its node and its file.
pub(crate) fn mark_of(node: &str, path: &Utf8Path) -> String {
    format!("{node} {}", path.file_name().unwrap_or_default())
}

/// Name of the node that a disk's device writes to, from the answer to `query-block`. Versions of QEMU name a device by
/// its id, by its path, or by the path of a part of it.
pub(crate) fn current_node(blocks: &Value, index: usize) -> Option<String> {
    let name = disks::first_node(index);
    blocks.as_array()?.iter().find_map(|block| {
        let of_device = block["qdev"].as_str()?.split('/').any(|part| part == name);
        let node = block["inserted"]["node-name"].as_str()?;
        (of_device && disks::index_of(node) == Some(index)).then(|| node.to_owned())
    })
}

/// Nodes that come after the one their disk writes to.
fn never_used<'a>(blocks: &Value, nodes: &HashSet<&'a str>) -> Vec<&'a str> {
    let later = |node: &&&str| {
        let current = disks::index_of(node).and_then(|index| current_node(blocks, index));
        current.is_some_and(|current| disks::number_of(node) > disks::number_of(&current))
    };
    nodes.iter().filter(later).copied().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_top_that_was_never_switched_to_is_found() {
        let inserted = json!({ "node-name": "disk1.4" });
        let blocks = json!([{ "qdev": "disk1", "inserted": inserted }]);
        let nodes = HashSet::from(["disk1", "disk1.3", "disk1.4", "disk1.5", "disk1-lowest", "disk0", "#b7"]);
        assert_eq!(never_used(&blocks, &nodes), ["disk1.5"]);
    }

    #[test]
    fn the_current_top_is_found_by_its_device() {
        let blocks = json!([
            { "qdev": "/machine/peripheral/disk1/virtio-backend", "inserted": { "node-name": "disk1.4" } },
            { "qdev": "disk10", "inserted": { "node-name": "disk10" } },
            { "qdev": "/machine/peripheral/disk0" },
        ]);
        assert_eq!(current_node(&blocks, 1).as_deref(), Some("disk1.4"));
        assert_eq!(current_node(&blocks, 10).as_deref(), Some("disk10"));
        assert_eq!(current_node(&blocks, 0), None);
        assert_eq!(current_node(&json!({}), 1), None);
    }
}
