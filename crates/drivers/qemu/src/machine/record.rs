//! Record of a machine, by which a later server finds it again.

use microvm_confinement::ProcessRecord;
use microvm_ports::LaunchError;
use microvm_ports::hypervisor::MachineRecord;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize};
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
    #[serde(default, deserialize_with = "or_nothing")]
    pub(crate) version: String,
    /// User id of the VMM; `None`: the server's own.
    #[serde(default, deserialize_with = "or_nothing")]
    pub(crate) user: Option<u32>,
    /// Facts that a save needs; machines of the first servers lack them and cannot be branched.
    #[serde(default, deserialize_with = "or_nothing")]
    pub(crate) saving: Option<Saving>,
}

const fn first_format() -> u32 {
    FIRST_FORMAT
}

/// Reads a part that a machine can do without: nothing of a part that this program cannot read. A machine whose record had
/// to be whole would be out of reach for ever, while its VMM goes on.
fn or_nothing<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Default + DeserializeOwned,
{
    Ok(serde_json::from_value(Value::deserialize(deserializer)?).unwrap_or_else(|error| {
        tracing::warn!(%error, part = std::any::type_name::<T>(), "a part of the record of a machine cannot be read, the machine goes on without it");
        T::default()
    }))
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

    /// User id of the VMM in a record that need not be readable; `None` if it tells none.
    pub(crate) fn user_of(stored: &MachineRecord) -> Option<u32> {
        stored.data["user"].as_u64().and_then(|user| user.try_into().ok())
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
        assert_eq!(
            written.data["saving"],
            of_before()["saving"]
                .as_object()
                .map(|saving| {
                    // Earlier versions need all that they wrote, to branch a machine after a rollback.
                    let mut saving = saving.clone();
                    saving.insert("buffered_disks".to_owned(), json!(false));
                    Value::Object(saving)
                })
                .unwrap()
        );
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
    fn a_part_that_cannot_be_read_costs_that_part_only() {
        let mut earlier = of_before();
        // As programs wrote it before the file of the memory was told.
        earlier["saving"].as_object_mut().unwrap().remove("memory_base");
        let read = Record::read(&stored(earlier)).unwrap();
        assert_eq!((read.version.as_str(), read.user), ("7.2.22", Some(1_610_612_737)));
        assert!(read.saving.is_none());
        for (part, bad) in [("version", json!(7)), ("user", json!("nobody")), ("saving", json!([]))] {
            let mut broken = of_before();
            broken[part] = bad;
            let read = Record::read(&stored(broken)).unwrap();
            assert_eq!(read.version.is_empty(), part == "version");
            assert_eq!((read.user.is_none(), read.saving.is_none()), (part == "user", part == "saving"));
        }
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
