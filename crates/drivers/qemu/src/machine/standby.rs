//! Standby VMMs: started before the state that they load is known.
//!
//! ```text
//!  prepare   process, cage, devices; writable disks are placeholders
//!  launch    disks handed over ▶ pages, device state ▶ paused, as after any launch
//! ```

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::os::fd::AsFd as _;
use std::sync::{Mutex, MutexGuard, PoisonError};

use camino::Utf8Path;
use futures::future::try_join_all;
use microvm_ports::hypervisor::{MachineDisk, MachineSpec, MachineStart};
use microvm_ports::{LaunchError, MachineError};
use microvm_types::VmId;
use serde_json::{Value, json};

use super::QemuMachine;
use crate::branch::Saving;
use crate::control::qmp::Qmp;
use crate::disks;
use crate::process::command_line::CommandLine;

/// All standby VMMs by the VM that they are started for.
#[derive(Default)]
pub(crate) struct WaitingRoom(Mutex<HashMap<VmId, Waiting>>);

impl WaitingRoom {
    fn lock(&self) -> MutexGuard<'_, HashMap<VmId, Waiting>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn add(&self, id: &VmId, waiting: Waiting) {
        self.lock().insert(id.clone(), waiting);
    }

    pub(crate) fn take(&self, id: &VmId) -> Option<Waiting> {
        self.lock().remove(id)
    }
}

/// A standby VMM. Its process lives on when this is dropped.
pub(crate) struct Waiting {
    machine: QemuMachine,
    /// Command line that it was started with.
    shape: CommandLine,
}

impl Waiting {
    pub(crate) fn new(machine: QemuMachine, shape: CommandLine) -> Self {
        Self { machine, shape }
    }

    /// Makes it the machine of `spec`, which needs a VMM that was started as `shape`.
    pub(crate) async fn load(
        mut self,
        shape: &CommandLine,
        spec: &MachineSpec,
        saving: &Saving,
    ) -> Result<QemuMachine, LaunchError> {
        let other = || LaunchError::Spec("it was started for another machine".to_owned());
        let MachineStart::Incoming(state) = &spec.start else { return Err(other()) };
        if !self.shape.starts_alike(shape) {
            return Err(other());
        }
        let handed_over = |error: MachineError| LaunchError::Process {
            step: "handing over its disks",
            detail: error.to_string(),
        };
        self.machine.is_now(saving.clone());
        let disks = async {
            for (index, disk) in spec.writable_disks() {
                attach(self.machine.qmp(), index, disk).await.map_err(handed_over)?;
            }
            Ok(())
        };
        self.machine.load(state, disks).await?;
        Ok(self.machine)
    }
}

/// Gives the device with this number its disk. QEMU does what it is told in the order in which it is told, so nothing is
/// waited for in between.
async fn attach(qmp: &Qmp, index: usize, disk: &MachineDisk) -> Result<(), MachineError> {
    let set_of = |depth: usize| disks::set_of_layer(index, depth);
    let paths: Vec<&Utf8Path> =
        std::iter::once(&disk.path).chain(&disk.backing).map(camino::Utf8PathBuf::as_path).collect();
    let names: Vec<String> = (0..paths.len()).map(|depth| disks::path_of_set(set_of(depth))).collect();
    let mark = disks::mark_of(&disks::first_node(index), &disk.path);
    // A disk is opened again whenever its use changes: its overlay needs a descriptor to write and one to read.
    let mut files = vec![(set_of(0), open(&disk.path, true)?)];
    for (depth, path) in paths.into_iter().enumerate() {
        files.push((set_of(depth), open(path, false)?));
    }
    let handing_over = files.iter().map(|(set, file)| {
        let arguments = if *set == set_of(0) {
            json!({ "fdset-id": set, "opaque": mark })
        } else {
            json!({ "fdset-id": set })
        };
        qmp.call_with_descriptor("take a disk's file", "add-fd", arguments, file.as_fd())
    });
    let device = format!("/machine/peripheral/{}", disks::first_node(index));
    let exchange = json!({ "path": device, "property": "drive", "value": disks::first_node(index) });
    let tree = disks::tree(index, disk, &names[0], &names[1..]);
    let then: [(&str, Value); 3] = [
        ("blockdev-add", tree),
        ("qom-set", exchange),
        ("blockdev-del", json!({ "node-name": disks::later_node(index) })),
    ];
    let using = then.map(|(command, arguments)| qmp.call("use a disk", command, arguments));
    futures::try_join!(try_join_all(handing_over), try_join_all(using)).map(|_| ())
}

fn open(path: &Utf8Path, write: bool) -> Result<File, MachineError> {
    let opened = OpenOptions::new().read(true).write(write).open(path);
    opened.map_err(|error| MachineError::Refused {
        action: "take a disk's file",
        detail: format!("{path}: {error}"),
    })
}
