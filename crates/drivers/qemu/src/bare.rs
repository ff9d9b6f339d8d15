//! What a branch and the loading of a state cost at least: the same steps on a QEMU of [`Qemu::bare_command`], which runs
//! without a cage and without a server.

use std::time::{Duration, Instant};

use bytes::Bytes;
use camino::Utf8Path;
use microvm_ports::branch::DiskChange;
use microvm_ports::storage::DiskFormat;
use microvm_ports::{LaunchError, MachineError};
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::command_line::QMP_SOCKET;
use crate::disks;
use crate::hypervisor::Qemu;
use crate::incoming;
use crate::new_tops::current_node;
use crate::qmp::{Event, Qmp};
use crate::socket;

/// How long a bare machine may take for one command.
const DEADLINE: Duration = Duration::from_secs(10);
/// Name of the file that its device state is written to.
const STATE: &str = "state.bare";

impl Qemu {
    /// Makes the bare machine in `directory` stand still for `stop`, its device state, the switch of the disk with index
    /// `disk` to `top` and `cont`, and tells for how long: the floor of the pause of a branch. Memory is not copied.
    ///
    /// # Errors
    /// [`MachineError`] of the step that failed; the machine may stand still then.
    pub async fn bare_pause(
        directory: &Utf8Path,
        disk: usize,
        top: &DiskChange,
    ) -> Result<Duration, MachineError> {
        let (qmp, _events) = connect(directory).await?;
        let blocks = qmp.call("list its disks", "query-block", json!({})).await?;
        let action = "open a disk's new top";
        let node = current_node(&blocks, disk).ok_or_else(|| MachineError::Refused {
            action,
            detail: format!("it does not say what disk {disk} writes to"),
        })?;
        let overlay = disks::next_node(&node);
        let mut description = disks::node(DiskFormat::Qcow2, top.path.as_str(), false, Value::Null);
        disks::without_flush(&mut description);
        description["node-name"] = json!(overlay);
        qmp.call(action, "blockdev-add", description).await?;
        let state = json!({ "filename": directory.join(STATE), "live": false });
        let data = json!({ "node": node, "overlay": overlay });
        let switch = json!({ "actions": [{ "type": "blockdev-snapshot", "data": data }] });
        let began = Instant::now();
        qmp.call("pause", "stop", json!({})).await?;
        qmp.call("save its device state", "xen-save-devices-state", state).await?;
        qmp.call("freeze its disks", "transaction", switch).await?;
        qmp.call("resume", "cont", json!({})).await?;
        Ok(began.elapsed())
    }

    /// Loads a device state into the bare machine in `directory`, which waits for one, and lets it run.
    ///
    /// # Errors
    /// [`LaunchError`] of the step that failed.
    pub async fn bare_load(directory: &Utf8Path, device_state: &Bytes) -> Result<(), LaunchError> {
        let refused = |error: MachineError| LaunchError::BadState(error.to_string());
        let (qmp, _events) = connect(directory).await.map_err(refused)?;
        incoming::load_devices(&qmp, device_state).await?;
        qmp.call("resume", "cont", json!({})).await.map(|_| ()).map_err(refused)
    }
}

/// The events are nobody's, but a connection ends when they cannot be delivered.
async fn connect(directory: &Utf8Path) -> Result<(Qmp, mpsc::Receiver<Event>), MachineError> {
    let opened = async { Qmp::open(socket::connect(directory, QMP_SOCKET).await?, DEADLINE).await };
    opened
        .await
        .map_err(|error: std::io::Error| MachineError::Refused { action: "greet", detail: error.to_string() })
}
