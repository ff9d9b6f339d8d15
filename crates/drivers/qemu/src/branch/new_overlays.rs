//! New overlays of a machine's disks: opened, handed over to QEMU as descriptors and made known to it, without any effect on
//! the disks until it switches to them.

use std::collections::HashSet;
use std::fs::OpenOptions;
use std::os::fd::AsFd as _;

use microvm_ports::branch::DiskChange;
use microvm_ports::storage::DiskFormat;
use microvm_ports::{BranchError, MachineError};
use serde_json::{Value, json};

use super::Branching;
use crate::disks;

/// Most sets of descriptors that are removed at once.
const SETS_MAX: usize = 256;

/// A disk whose new overlay is known to QEMU.
pub(crate) struct Switch {
    pub(crate) node: String,
    pub(crate) overlay: String,
}

impl Branching {
    /// Opens the new overlays and makes them known to QEMU, without any effect on the disks yet.
    pub(crate) async fn add_overlays(
        &self,
        blocks: &Value,
        overlays: &[DiskChange],
    ) -> Result<Vec<Switch>, BranchError> {
        // A writable disk that is left out would be written on by the parent below its children.
        if let Some(serial) =
            self.saving.disks.keys().find(|serial| overlays.iter().all(|overlay| overlay.serial != **serial))
        {
            return Err(disk_error(serial, "it is writable and has no new overlay"));
        }
        let mut switches = Vec::new();
        for overlay in overlays {
            let index = *self
                .saving
                .disks
                .get(&overlay.serial)
                .ok_or_else(|| disk_error(&overlay.serial, "there is no such disk"))?;
            let node = disks::current_node(blocks, index)
                .ok_or_else(|| disk_error(&overlay.serial, "the VMM does not name what it writes to"))?;
            let next = disks::next_node(&node);
            let set = self.hand_over(overlay, &next).await?;
            let mut description =
                disks::node(DiskFormat::Qcow2, &format!("/dev/fdset/{set}"), false, Value::Null);
            if overlay.serial == disks::SCRATCH {
                disks::without_flush(&mut description);
            }
            description["node-name"] = json!(next);
            let known = self.call("open a disk's new overlay", "blockdev-add", description).await;
            if let Err(error) = known {
                // No node was made that could be recognised as unused later.
                self.call("forget a descriptor", "remove-fd", json!({ "fdset-id": set })).await?;
                return Err(error.into());
            }
            switches.push(Switch { node, overlay: next });
        }
        Ok(switches)
    }

    /// Gives QEMU a new overlay as a set of descriptors, one to read and one to write: it opens a disk again whenever its use
    /// changes. The set is marked with the name of its node.
    async fn hand_over(&self, overlay: &DiskChange, node: &str) -> Result<Value, BranchError> {
        let open = |write| {
            let opened = OpenOptions::new().read(true).write(write).open(&overlay.path);
            opened.map_err(|error| disk_error(&overlay.serial, error.to_string()))
        };
        // QEMU takes from a set only a descriptor of the very access that it wants.
        let (writing, reading) = (open(true)?, open(false)?);
        let action = "take a disk's new overlay";
        let mark = json!({ "opaque": disks::mark_of(node, &overlay.path) });
        let added = self.qmp.call_with_descriptor(action, "add-fd", mark, writing.as_fd()).await?;
        let set = added["fdset-id"].clone();
        let beside = json!({ "fdset-id": set, "opaque": disks::mark_of(node, &overlay.path) });
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
            None if disks::number_of(node) == 0 => self.saving.first_overlays.get(serial).cloned(),
            None => None,
        }
        .ok_or_else(|| disk_error(serial, "the file that it writes to is not known"))
    }

    /// Closes unused files: new overlays of a server that died before it switched to them, and descriptors of overlays that
    /// no disk uses any more.
    pub(crate) async fn forget_unused(&self, blocks: &Value) -> Result<(), MachineError> {
        let sets = self.call("list its descriptors", "query-fdsets", json!({})).await?;
        let nodes =
            self.call("list its block nodes", "query-named-block-nodes", json!({ "flat": true })).await?;
        let mut known: HashSet<&str> =
            nodes.as_array().into_iter().flatten().filter_map(|node| node["node-name"].as_str()).collect();
        for node in disks::never_used(blocks, &known) {
            self.call("forget a disk's new overlay", "blockdev-del", json!({ "node-name": node })).await?;
            known.remove(node);
        }
        let files: HashSet<&str> =
            nodes.as_array().into_iter().flatten().filter_map(|node| node["file"].as_str()).collect();
        let unused = |set: &&Value| match set["fds"][0]["opaque"].as_str() {
            Some(mark) => {
                let node = mark.split(' ').next().unwrap_or_default();
                disks::index_of(node).is_some() && !known.contains(node)
            }
            None => disks::is_of_a_layer(&set["fdset-id"], &files),
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
