//! A device state on its way out of or into QEMU: a file in memory that QEMU gets as a descriptor, since it can open
//! nothing in its cage.

use std::fs::{File, OpenOptions};
use std::io::{Seek as _, Write as _};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::os::unix::fs::FileExt as _;

use bytes::Bytes;
use microvm_ports::{BranchError, MachineError};
use rustix::fs::{MemfdFlags, memfd_create};
use serde_json::{Value, json};

use super::Branching;
use crate::control::qmp::Qmp;

/// Longest device state accepted, in bytes; an honest one is some 60 KiB. The VMM may be under its guest's control.
const LONGEST: u64 = 16 << 20;

/// A file in memory that QEMU may write a device state to.
pub(crate) struct StateFile {
    file: File,
    set: Value,
}

impl StateFile {
    /// Makes the file and hands it over, for writing only, as QEMU opens it.
    pub(crate) async fn for_saving(qmp: &Qmp) -> Result<Self, BranchError> {
        let failed = |cause| BranchError::Memory { step: "making a file for the device state", cause };
        let file = in_memory().map_err(failed)?;
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        // Opened anew and not duplicated: QEMU takes a descriptor only if its access is what it asks for.
        let for_qemu = OpenOptions::new().write(true).open(path).map_err(failed)?;
        let added = qmp
            .call_with_descriptor("take a file for its state", "add-fd", json!({}), for_qemu.as_fd())
            .await?;
        Ok(Self { file, set: added["fdset-id"].clone() })
    }

    /// Has QEMU write its device state; the processors are paused.
    pub(crate) async fn save(&self, machine: &Branching) -> Result<(), MachineError> {
        // The command is named for its first user; it saves everything but memory (`live`: disks stay in use).
        let arguments = json!({ "filename": format!("/dev/fdset/{}", self.set), "live": false });
        machine.call("save its device state", "xen-save-devices-state", arguments).await.map(|_| ())
    }

    /// The device state that was written.
    pub(crate) async fn read(self, qmp: &Qmp) -> Result<Bytes, BranchError> {
        qmp.call("forget a descriptor", "remove-fd", json!({ "fdset-id": self.set })).await?;
        let failed = |cause| BranchError::Memory { step: "reading the device state", cause };
        let length = self.file.metadata().map_err(failed)?.len();
        if length == 0 || length > LONGEST {
            let detail = format!("it wrote {length} bytes of device state");
            return Err(MachineError::Refused { action: "save its device state", detail }.into());
        }
        let mut content = vec![0; usize::try_from(length).unwrap_or(0)];
        self.file.read_exact_at(&mut content, 0).map_err(failed)?;
        Ok(content.into())
    }
}

/// A file in memory that holds `content`, at its beginning.
pub(crate) fn holding(content: &[u8]) -> std::io::Result<File> {
    let mut file = in_memory()?;
    file.write_all(content)?;
    file.rewind()?;
    Ok(file)
}

fn in_memory() -> std::io::Result<File> {
    Ok(memfd_create("microvm-device-state", MemfdFlags::CLOEXEC)?.into())
}
