//! Makes the files of a VM on top of a state.

use camino::Utf8Path;
use microvm_ports::StorageError;
use microvm_ports::storage::VmFiles;
use microvm_types::VmId;

use super::handle::SourceHandle;
use crate::base::cancel::Cancel;
use crate::base::error::damaged;
use crate::base::files::exists;
use crate::store::Inner;
use crate::vms::manifest::DiskManifest;

impl Inner {
    /// What the disk of a VM consists of that stems from `source`, with a new top that is not written yet.
    pub(crate) fn disk_from(
        &self,
        directory: &Utf8Path,
        source: &SourceHandle,
    ) -> Result<DiskManifest, StorageError> {
        let base = self.directories.scratch_base.join(&source.base);
        if !exists(&base) {
            return Err(damaged(format!("the empty scratch disk {base}"), "it is missing"));
        }
        self.verify_scratch_base(&base)?;
        Ok(DiskManifest {
            disk_mib: source.disk_mib,
            base: source.base.clone(),
            top: self.fresh_top(directory),
            pending: Vec::new(),
            layers: source.layers.clone(),
            memory_base: source.memory_base.clone(),
            memory_parent: source.memory_parent.clone(),
        })
    }

    pub(crate) fn create_vm_from(
        &self,
        vm: &VmId,
        source: &SourceHandle,
        cancel: &Cancel,
    ) -> Result<VmFiles, StorageError> {
        let disk = self.disk_from(&self.vm_path(vm), source)?;
        self.create_vm(vm, &disk, cancel)
    }
}
