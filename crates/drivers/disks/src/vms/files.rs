//! Directories of VMs, and the disks in them.

use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt};

use camino::{Utf8Path, Utf8PathBuf};
use microvm_durable::cancel::Cancel;
use microvm_durable::error::{damaged, failed, io_error};
use microvm_durable::files::{
    exists, make_directory, names_in, remove_all, rename_durably, sync_directory, write_new,
};
use microvm_ports::StorageError;
use microvm_ports::hypervisor::MachineDisk;
use microvm_ports::storage::{DiskFormat, VmFiles};
use microvm_types::VmId;

use super::VmDisks;
use super::manifest::{Chain, DiskManifest, MANIFEST, is_top};
use super::record::RECORD;

/// Serial number by which the agent finds the disk.
pub(crate) const SCRATCH_SERIAL: &str = "scratch";
/// Marks the directory of a VM that is not made yet.
const RESERVED: &str = "reserved";
/// Marks the directory of a VM whose creation has not been reported.
const UNFINISHED: &str = "unfinished";
/// Less free space than this and a VM is not begun.
const SPACE_MIN: u64 = 16 << 20;

impl VmDisks {
    /// Makes the directory of a VM that is not made yet.
    pub(crate) fn reserve(&self, id: &VmId, cancel: &Cancel) -> Result<Utf8PathBuf, StorageError> {
        let directory = self.ground.vm_path(id);
        cancel.check()?;
        // Not synced: it means something only while this server and its VMMs live.
        std::fs::DirBuilder::new()
            .mode(0o700)
            .create(&directory)
            .map_err(io_error("creating", &directory))?;
        let marker = directory.join(RESERVED);
        let marked = std::fs::File::create_new(&marker).map_err(|error| failed("creating", &marker, error));
        marked.and_then(|_| cancel.check()).inspect_err(|_| {
            let _ = remove_all(&directory);
        })?;
        Ok(directory)
    }

    /// Notes that the creation of a VM has been reported.
    pub(crate) fn finish(&self, id: &VmId) -> Result<(), StorageError> {
        // Not synced: should it come back with a crash of the host, the record still says that the VM is there.
        remove_all(&self.ground.vm_path(id).join(UNFINISHED))
    }

    /// True if a directory is surely what an interrupted creation or removal left: it is marked so, or has no disk. A disk
    /// whose manifest is lost still belongs to a VM.
    pub(crate) fn is_unfinished(&self, id: &VmId) -> Result<bool, StorageError> {
        let directory = self.ground.vm_path(id);
        let has = |name: &str| {
            let path = directory.join(name);
            match path.symlink_metadata() {
                Ok(_) => Ok(true),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
                Err(error) => Err(failed("examining", &path, error)),
            }
        };
        if has(UNFINISHED)? {
            return Ok(true);
        }
        // A directory that is not there has no disk either.
        let has_disk = || Ok(has(".")? && names_in(&directory)?.iter().any(|name| is_top(name)));
        Ok(!has(MANIFEST)? && (has(RESERVED)? || !has_disk()?))
    }

    /// Ids of all directories of VMs.
    pub(crate) fn ids(&self) -> Result<Vec<VmId>, StorageError> {
        Ok(names_in(&self.ground.directories.vms)?.iter().filter_map(|name| name.parse().ok()).collect())
    }

    /// The files of a VM, all of which are there.
    pub(crate) fn find(&self, id: &VmId) -> Result<VmFiles, StorageError> {
        let files = self.files_of(self.ground.vm_path(id), &self.read_disk(id)?);
        for disk in std::iter::once(&files.scratch).chain(&files.own) {
            for path in std::iter::once(&disk.path).chain(&disk.backing) {
                if !exists(path) {
                    return Err(damaged(format!("the disk of VM {id}"), format!("{path} is missing")));
                }
            }
        }
        Ok(files)
    }

    /// Removes the files of a VM: out of sight first, then away.
    pub(crate) fn remove(&self, id: &VmId) -> Result<(), StorageError> {
        let directory = self.ground.vm_path(id);
        if !exists(&directory) {
            return Ok(());
        }
        // Removed with the workspace, also after a crash.
        let moved = self.ground.workspace().and_then(|workspace| {
            std::fs::rename(&directory, workspace.join("vm"))
                .map_err(|error| failed("removing", &directory, error))
        });
        match moved {
            Ok(()) => sync_directory(&self.ground.directories.vms),
            Err(_) if !exists(&directory) => Ok(()),
            Err(error) => {
                tracing::warn!(%error, "a VM's files are removed where they are");
                remove_in_place(&directory)
            }
        }
    }

    /// Disks as a VMM gets them: the newest top over everything below it.
    pub(crate) fn files_of(&self, directory: Utf8PathBuf, disk: &DiskManifest) -> VmFiles {
        let machine_disk = |chain: &Chain, base: Utf8PathBuf, serial: &str| MachineDisk {
            path: directory.join(&chain.top),
            format: DiskFormat::Qcow2,
            backing: self.below_top(&directory, chain).chain(std::iter::once(base)).collect(),
            read_only: false,
            serial: serial.to_owned(),
        };
        let base = self.ground.directories.scratch_base.join(&disk.base);
        let scratch = machine_disk(&disk.chain, base, SCRATCH_SERIAL);
        let own = disk.own.iter().filter_map(|own| {
            let copy = own.base.as_ref().map(|id| self.ground.raw_layer_path(id));
            let base = copy.or_else(|| own.home.as_ref().map(|home| home.path.clone()))?;
            Some(machine_disk(&own.chain, base, &own.serial))
        });
        let own = own.collect();
        VmFiles { directory, scratch, own }
    }

    /// The files of a chain between its top and its base, newest first.
    pub(crate) fn below_top<'a>(
        &'a self,
        directory: &'a Utf8Path,
        chain: &'a Chain,
    ) -> impl Iterator<Item = Utf8PathBuf> + 'a {
        let tops = chain.pending.iter().map(|name| directory.join(name));
        tops.chain(chain.layers.iter().map(|id| self.ground.layer_path(id)))
    }

    /// Makes the directory of a VM with its first top, or nothing at all.
    pub(crate) fn create_vm(
        &self,
        id: &VmId,
        disk: &DiskManifest,
        cancel: &Cancel,
    ) -> Result<VmFiles, StorageError> {
        let directory = self.ground.vm_path(id);
        if exists(&directory) {
            return self.fill_reserved(id, directory, disk, cancel);
        }
        let _room = self.ground.room.require(&self.ground.directories.vms, SPACE_MIN, "creating the VM")?;
        let workspace = self.ground.workspace()?;
        let new = workspace.join("vm");
        make_directory(&new, 0o700)?;
        self.write_tops(&new, disk)?;
        // Until core has reported the VM: a server that dies before leaves it to the next one to remove.
        write_new(&new.join(UNFINISHED), 0o600, &[])?;
        microvm_durable::manifest::write(&new.join(MANIFEST), disk)?;
        sync_directory(&new)?;
        cancel.check()?;
        rename_durably(&new, &directory)?;
        Ok(self.files_of(directory, disk))
    }

    /// Like [`Self::create_vm`], in a directory that was reserved: the manifest, written last, makes it one of a VM.
    fn fill_reserved(
        &self,
        id: &VmId,
        directory: Utf8PathBuf,
        disk: &DiskManifest,
        cancel: &Cancel,
    ) -> Result<VmFiles, StorageError> {
        let reserved = directory.join(RESERVED);
        if !exists(&reserved) || exists(&directory.join(MANIFEST)) {
            return Err(StorageError::NameTaken(id.to_string()));
        }
        let _room = self.ground.room.require(&directory, SPACE_MIN, "creating the VM")?;
        let filled = self.write_tops(&directory, disk).and_then(|()| {
            cancel.check()?;
            self.write_disk(id, disk)
        });
        if let Err(error) = filled.and_then(|()| sync_directory(&self.ground.directories.vms)) {
            // Only if the manifest does not name them: the step that failed may have been the last sync. The first error is
            // the one to tell.
            if !exists(&directory.join(MANIFEST)) {
                for name in names_in(&directory).unwrap_or_default().iter().filter(|name| is_top(name)) {
                    let _ = remove_all(&directory.join(name));
                }
            }
            return Err(error);
        }
        let unfinished = directory.join(UNFINISHED);
        std::fs::rename(&reserved, &unfinished).map_err(io_error("renaming", &reserved))?;
        Ok(self.files_of(directory, disk))
    }

    /// True if the directory was made for a VM that is not made yet.
    pub(crate) fn is_reserved(&self, id: &VmId) -> bool {
        let directory = self.ground.vm_path(id);
        exists(&directory.join(RESERVED)) && !exists(&directory.join(MANIFEST))
    }
}

/// Frees a VM's files where not even an empty directory can be made, as on a full disk: the disk's content first, which
/// is most of it, also where something still holds it open. After a crash what is left is still found as a VM's
/// directory, and removed as one.
fn remove_in_place(directory: &Utf8Path) -> Result<(), StorageError> {
    for name in names_in(directory)?.iter().filter(|name| is_top(name)) {
        let truncated = std::fs::OpenOptions::new()
            .write(true)
            .custom_flags(rustix::fs::OFlags::NOFOLLOW.bits().cast_signed())
            .open(directory.join(name))
            // A top with a second name is a layer already: others depend on it.
            .and_then(|top| if top.metadata()?.nlink() == 1 { top.set_len(0) } else { Ok(()) });
        if let Err(error) = truncated {
            tracing::debug!(%error, "a disk is removed without being emptied first");
        }
    }
    // By its record a VM that no row knows would be taken up again.
    remove_all(&directory.join(RECORD))?;
    // Without a manifest nothing is written back any more, and by the mark in its place what is left is known as garbage; to
    // rename takes no room.
    match std::fs::rename(directory.join(MANIFEST), directory.join(UNFINISHED)) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(failed("removing", &directory.join(MANIFEST), error));
        }
        _ => remove_all(directory)?,
    }
    directory.parent().map_or(Ok(()), sync_directory)
}

/// Writes a new file without its zero parts.
pub(crate) fn write_sparse(path: &Utf8Path, bytes: &[u8]) -> Result<(), StorageError> {
    write_new(path, 0o600, &[])?;
    let file = std::fs::OpenOptions::new().write(true).open(path).map_err(io_error("opening", path))?;
    file.set_len(bytes.len() as u64).map_err(io_error("resizing", path))?;
    for (index, piece) in bytes.chunks(4096).enumerate() {
        if piece.iter().any(|byte| *byte != 0) {
            file.write_all_at(piece, index as u64 * 4096).map_err(io_error("writing", path))?;
        }
    }
    file.sync_all().map_err(io_error("syncing", path))
}
