//! Record of a machine, by which a later server finds it again.

use microvm_confinement::ProcessRecord;
use microvm_ports::LaunchError;
use microvm_ports::hypervisor::MachineRecord;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::branch::Saving;
use crate::probe::NAME;

/// Version of the record that this program writes. It is raised when an older program must not use a record; a field that it
/// may overlook is added without.
const FORMAT: u32 = 2;

/// Records of before there were versions.
const FIRST_FORMAT: u32 = 1;

/// The driver's part of a machine's record, kept by core with the VM.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Record {
    /// Version of this record.
    #[serde(default = "first_format")]
    format: u32,
    /// Supervisor and VMM.
    pub(crate) process: ProcessRecord,
    /// Version of QEMU that runs the machine.
    #[serde(default)]
    pub(crate) version: String,
    /// User id of the VMM; `None`: the server's own.
    #[serde(default)]
    pub(crate) user: Option<u32>,
    /// Facts that a save needs; machines of the first servers lack them and cannot be branched.
    #[serde(default)]
    pub(crate) saving: Option<Saving>,
}

const fn first_format() -> u32 {
    FIRST_FORMAT
}

impl Record {
    pub(crate) fn new(
        process: ProcessRecord,
        version: String,
        user: Option<u32>,
        saving: Option<Saving>,
    ) -> Self {
        Self { format: FORMAT, process, version, user, saving }
    }

    /// The record as core keeps it.
    pub(crate) fn store(&self) -> MachineRecord {
        // Maps with text keys and numbers: there is nothing that JSON could not hold.
        let data = serde_json::to_value(self).unwrap_or(Value::Null);
        MachineRecord { driver: NAME.to_owned(), data }
    }

    /// Reads what [`Record::store`] gave, by this program or an earlier one.
    ///
    /// # Errors
    /// [`LaunchError::Gone`] for a machine of another driver. [`LaunchError::Process`] for a record that this program cannot
    /// read: the machine may well be alive, so nothing of it is given up.
    pub(crate) fn read(stored: &MachineRecord) -> Result<Self, LaunchError> {
        if stored.driver != NAME {
            return Err(LaunchError::Gone(format!("it belongs to the driver `{}`", stored.driver)));
        }
        let unreadable = |detail: String| LaunchError::Process { step: "reading its record", detail };
        let format = stored.data["format"].as_u64().unwrap_or_else(|| FIRST_FORMAT.into());
        if format > FORMAT.into() {
            return Err(unreadable(format!("it has version {format}, this program reads up to {FORMAT}")));
        }
        Self::deserialize(&stored.data).map_err(|error| unreadable(error.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// As the program before there were versions wrote it.
    fn of_before() -> Value {
        json!({
            "process": {
                "version": 1,
                "boot_id": "3c8c9f0e-1d2b-4b5e-8f7a-0a1b2c3d4e5f",
                "vmm": { "pid": 4711, "start_ticks": 123_456 },
                "supervisor": { "pid": 4710, "start_ticks": 123_450 },
                "layers": ["namespaces", "seccomp"],
            },
            "version": "7.2.22",
            "user": 1_610_612_737,
            "saving": {
                "memory_base": "/root/memory/zero-256.mem",
                "memory": { "inode": 42, "bytes": 268_435_456 },
                "disks": { "scratch": 1 },
                "first_tops": { "scratch": "scratch.qcow2" },
                "compatibility": { "VMM": "QEMU 7.2.22", "machine": "microvm,acpi=off,rtc=on,pit=on,pic=on,isa-serial=on" },
                "discovery": "command_line",
            },
        })
    }

    fn stored(data: Value) -> MachineRecord {
        MachineRecord { driver: "qemu".to_owned(), data }
    }

    #[test]
    fn a_record_of_before_is_taken_over_and_written_with_its_version() {
        let read = Record::read(&stored(of_before())).unwrap();
        assert_eq!((read.format, read.version.as_str(), read.user), (1, "7.2.22", Some(1_610_612_737)));
        let saving = read.saving.clone().unwrap();
        assert_eq!(
            (saving.disks["scratch"], saving.first_overlays["scratch"].as_str()),
            (1, "scratch.qcow2")
        );
        assert!(!saving.buffered_disks, "what is not told must not be believed");
        let written = Record::new(read.process, read.version, read.user, read.saving).store();
        assert_eq!(written.data["format"], 2);
        let again = Record::read(&written).unwrap();
        assert_eq!(again.saving.unwrap().compatibility, saving.compatibility);
        // The first servers kept no more than the process.
        let mut first = of_before();
        for later in ["saving", "user", "version"] {
            first.as_object_mut().unwrap().remove(later);
        }
        assert!(Record::read(&stored(first)).unwrap().saving.is_none());
    }

    #[test]
    fn a_record_that_cannot_be_read_gives_nothing_up() {
        let mut newer = of_before();
        newer["format"] = json!(3);
        let mut broken = of_before();
        broken["process"] = json!("gone");
        for bad in [newer, broken] {
            let error = Record::read(&stored(bad)).unwrap_err();
            assert!(matches!(error, LaunchError::Process { .. }), "{error}");
        }
        let other = MachineRecord { driver: "fake".to_owned(), data: of_before() };
        assert!(matches!(Record::read(&other), Err(LaunchError::Gone(_))));
    }
}
