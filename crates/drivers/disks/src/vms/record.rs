//! `record.json`: the record of a VM as of the last change after which an older one would do harm.

use microvm_durable::error::{damaged, io_error};
use microvm_durable::files::remove_all;
use microvm_durable::manifest;
use microvm_ports::StorageError;
use microvm_types::VmId;
use microvm_types::vm::VmRecord;

use super::VmDisks;

/// Holds the copy of the record.
pub(crate) const RECORD: &str = "record.json";

impl VmDisks {
    /// Keeps a copy of a record in place of an earlier one.
    pub(crate) fn keep_record(&self, record: &VmRecord) -> Result<(), StorageError> {
        let directory = self.ground.vm_path(&record.id);
        let (temporary, path) = (directory.join(format!("{RECORD}.new")), directory.join(RECORD));
        remove_all(&temporary)?;
        // For nobody else: a template may hold secrets in its environment.
        microvm_durable::files::write_new(&temporary, 0o600, &manifest::encode(record))?;
        // The directory is not synced: should an earlier copy come back with a crash of the host, the row is newer, and is
        // believed.
        std::fs::rename(&temporary, &path).map_err(io_error("renaming to", &path))?;
        self.finish(&record.id)
    }

    /// The copy that was kept last.
    pub(crate) fn kept_record(&self, id: &VmId) -> Result<Option<VmRecord>, StorageError> {
        let path = self.ground.vm_path(id).join(RECORD);
        match path.symlink_metadata() {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(io_error("examining", &path)(error)),
            Ok(_) => {}
        }
        let what = format!("the record in the directory of VM {id}");
        let record: VmRecord = manifest::read(&path, &what)?;
        if record.id != *id {
            return Err(damaged(&what, format!("it is that of VM {}", record.id)));
        }
        Ok(Some(record))
    }
}
