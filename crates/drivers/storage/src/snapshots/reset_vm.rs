//! Puts a VM back on a state.

use microvm_ports::StorageError;
use microvm_ports::storage::VmFiles;
use microvm_types::VmId;

use super::handle::SourceHandle;
use crate::base::files::{remove_all, require_space};
use crate::store::Inner;

/// Less free space than this and nothing is begun.
const SPACE_MIN: u64 = 4 << 20;

impl Inner {
    /// The manifest decides: before it is replaced the VM is what it was, afterwards it is the state.
    pub(crate) fn reset_vm(&self, vm: &VmId, source: &SourceHandle) -> Result<VmFiles, StorageError> {
        let lock = self.locks.of(&format!("disk/{vm}"));
        let _alone = lock.hold();
        // It must be there, whatever it holds.
        self.read_disk(vm)?;
        let directory = self.vm_path(vm);
        require_space(&directory, SPACE_MIN, "putting the VM back")?;
        let disk = self.disk_from(&directory, source)?;
        let top = directory.join(&disk.top);
        let replaced = self.write_top(&top, &disk).and_then(|()| self.write_disk(vm, &disk));
        if let Err(error) = replaced {
            if self.read_disk(vm).is_ok_and(|now| now.top != disk.top) {
                remove_all(&top)?;
            }
            return Err(error);
        }
        self.remove_stray_tops(&directory, &disk)?;
        Ok(self.files_of(directory, &disk))
    }
}
