//! Puts a VM back on a state.

use camino::Utf8Path;
use microvm_durable::files::{exists, remove_all, require_space};
use microvm_ports::StorageError;
use microvm_ports::storage::VmFiles;
use microvm_types::VmId;

use super::Children;
use super::handle::SourceHandle;
use crate::vms::manifest::{DiskManifest, Home, OwnDisk};
use crate::vms::own_disk::{Left, open};

/// Less free space than this and nothing is begun.
const SPACE_MIN: u64 = 4 << 20;

impl Children {
    /// The manifest decides: before it is replaced the VM is what it was, afterwards it is the state.
    pub(crate) fn reset_vm(&self, vm: &VmId, source: &SourceHandle) -> Result<VmFiles, StorageError> {
        let lock = self.ground.disk_lock(vm);
        let _alone = lock.hold();
        // It must be there, whatever it holds.
        let before = self.vms.read_disk(vm)?;
        let directory = self.ground.vm_path(vm);
        require_space(&directory, SPACE_MIN, "putting the VM back")?;
        let mut disk = self.disk_from(&directory, source)?;
        for (own, from) in disk.own.iter_mut().zip(&source.own) {
            own.home = from.home.as_ref().map(|path| home_again(path, own, &before)).transpose()?;
        }
        let replaced = self.vms.write_tops(&directory, &disk).and_then(|()| self.vms.write_disk(vm, &disk));
        if let Err(error) = replaced {
            // The manifest may be in place although its sync failed: then the new tops are the disk.
            if self.vms.read_disk(vm).is_ok_and(|now| now.chain.top != disk.chain.top) {
                for chain in disk.chains() {
                    remove_all(&directory.join(&chain.top))?;
                }
            }
            return Err(error);
        }
        self.vms.remove_stray_tops(&directory, &disk)?;
        Ok(self.vms.files_of(directory, &disk))
    }
}

/// The user's file that a disk goes on to belong to. It has what the VM last gave it, or what it had when it was copied.
fn home_again(path: &Utf8Path, own: &OwnDisk, before: &DiskManifest) -> Result<Home, StorageError> {
    let known = before.own.iter().find(|known| known.serial == own.serial);
    match known.and_then(|known| Some((known, known.home.as_ref()?))) {
        // Without a mark, the file may have half of what the VM wrote.
        Some((known, home)) if home.path == path && home.left.is_some() => {
            Ok(Home { holds_base: home.holds_base && known.base == own.base, ..home.clone() })
        }
        // It was given everything when the VM was stopped, or nothing is known of it: all of it is compared.
        _ => {
            let left = if exists(path) { Some(Left::of(&open(path, false)?, path)?) } else { None };
            let begun = Some(known.is_some_and(OwnDisk::has_begun));
            Ok(Home { path: path.to_owned(), inode: None, device: None, left, holds_base: false, begun })
        }
    }
}
