//! Makes the files of a VM on top of a state.

use camino::Utf8Path;
use microvm_durable::cancel::Cancel;
use microvm_durable::error::damaged;
use microvm_durable::files::exists;
use microvm_ports::StorageError;
use microvm_ports::storage::VmFiles;
use microvm_types::VmId;

use super::Children;
use super::handle::SourceHandle;
use crate::vms::manifest::{Chain, DiskManifest, OwnDisk};
use crate::vms::tops::FrozenOwn;

impl Children {
    /// Disk of a VM that stems from `source`, with a new top that is not written yet.
    pub(crate) fn disk_from(
        &self,
        directory: &Utf8Path,
        source: &SourceHandle,
    ) -> Result<DiskManifest, StorageError> {
        let base = self.ground.directories.scratch_base.join(&source.base);
        if !exists(&base) {
            return Err(damaged(format!("the empty scratch disk {base}"), "it is missing"));
        }
        self.scratch.verify_scratch_base(&base)?;
        Ok(DiskManifest {
            disk_mib: source.disk_mib,
            base: source.base.clone(),
            chain: Chain::new(self.vms.fresh_top(directory), source.layers.clone()),
            own: source.own.iter().map(|own| self.copy_of(directory, own)).collect(),
            memory_base: source.memory_base.clone(),
            memory_parent: source.memory_parent.clone(),
        })
    }

    /// A disk of the VM's own that begins as what was the user's; its top is not written yet.
    fn copy_of(&self, directory: &Utf8Path, own: &FrozenOwn) -> OwnDisk {
        OwnDisk {
            serial: own.serial.clone(),
            bytes: own.bytes,
            chain: Chain::new(self.vms.fresh_top(directory), own.layers.clone()),
            base: Some(own.base.clone()),
            home: None,
        }
    }

    pub(crate) fn create_vm_from(
        &self,
        vm: &VmId,
        source: &SourceHandle,
        cancel: &Cancel,
    ) -> Result<VmFiles, StorageError> {
        let disk = self.disk_from(&self.ground.vm_path(vm), source)?;
        self.vms.create_vm(vm, &disk, cancel)
    }
}
