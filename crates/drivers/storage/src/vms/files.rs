//! The port for files of VMs.

use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt};

use async_trait::async_trait;
use camino::{Utf8Path, Utf8PathBuf};
use microvm_durable::cancel::Cancel;
use microvm_durable::error::{bad_input, damaged, failed, io_error};
use microvm_durable::files::{
    canonical, disk_usage, exists, make_directory, names_in, remove_all, rename_durably, sync_directory,
    write_new,
};
use microvm_durable::workspace::remove_leftovers;
use microvm_ports::hypervisor::MachineDisk;
use microvm_ports::storage::{DiskFormat, Space, VmFiles};
use microvm_ports::{StorageError, VmStorage};
use microvm_types::VmId;

use super::manifest::{Chain, DiskManifest, MANIFEST, is_top};
use super::{disks, folders};
use crate::store::{Inner, Storage};

/// Serial number by which the agent finds the disk.
pub(crate) const SCRATCH_SERIAL: &str = "scratch";
/// Largest memory file: 1 TiB.
pub(crate) const MEMORY_MAX_MIB: u32 = 1 << 20;
/// Marks the directory of a VM that is not made yet.
const RESERVED: &str = "reserved";
/// Marks the directory of a VM whose creation has not been reported.
const UNFINISHED: &str = "unfinished";
/// Less free space than this and a VM is not begun.
const SPACE_MIN: u64 = 16 << 20;

impl Inner {
    pub(crate) fn vm_path(&self, id: &VmId) -> Utf8PathBuf {
        self.directories.vms.join(id.as_str())
    }

    /// What a VMM is given: the newest top over everything below it.
    pub(crate) fn files_of(&self, directory: Utf8PathBuf, disk: &DiskManifest) -> VmFiles {
        let machine_disk = |chain: &Chain, base: Utf8PathBuf, serial: &str| MachineDisk {
            path: directory.join(&chain.top),
            format: DiskFormat::Qcow2,
            backing: self.below_top(&directory, chain).chain(std::iter::once(base)).collect(),
            read_only: false,
            serial: serial.to_owned(),
        };
        let base = self.directories.scratch_base.join(&disk.base);
        let scratch = machine_disk(&disk.chain, base, SCRATCH_SERIAL);
        let own = disk.own.iter().filter_map(|own| {
            let copy = own.base.as_ref().map(|id| self.raw_layer_path(id));
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
        tops.chain(chain.layers.iter().map(|id| self.layer_path(id)))
    }

    /// Makes the directory of a VM with its first top, or nothing at all.
    pub(crate) fn create_vm(
        &self,
        id: &VmId,
        disk: &DiskManifest,
        cancel: &Cancel,
    ) -> Result<VmFiles, StorageError> {
        let directory = self.vm_path(id);
        if exists(&directory) {
            return self.fill_reserved(id, directory, disk, cancel);
        }
        let _room = self.room.require(&self.directories.vms, SPACE_MIN, "creating the VM")?;
        let workspace = self.workspace()?;
        let new = workspace.join("vm");
        make_directory(&new, 0o700)?;
        self.write_tops(&new, disk)?;
        write_new(&new.join(UNFINISHED), 0o600, &[])?;
        microvm_durable::manifest::write(&new.join(MANIFEST), disk)?;
        sync_directory(&new)?;
        cancel.check()?;
        rename_durably(&new, &directory)?;
        Ok(self.files_of(directory, disk))
    }

    /// The same in a directory that was reserved: the manifest, written last, makes it one of a VM.
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
        let _room = self.room.require(&directory, SPACE_MIN, "creating the VM")?;
        let filled = self.write_tops(&directory, disk).and_then(|()| {
            cancel.check()?;
            self.write_disk(id, disk)
        });
        if let Err(error) = filled.and_then(|()| sync_directory(&self.directories.vms)) {
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

    /// Whether the directory was made for a VM that is not made yet.
    pub(crate) fn is_reserved(&self, id: &VmId) -> bool {
        let directory = self.vm_path(id);
        exists(&directory.join(RESERVED)) && !exists(&directory.join(MANIFEST))
    }

    pub(crate) fn zero_memory_file(&self, memory_mib: u32) -> Result<Utf8PathBuf, StorageError> {
        if memory_mib == 0 || memory_mib > MEMORY_MAX_MIB {
            return Err(bad_input(
                "the memory size",
                format!("{memory_mib} MiB were asked for; 1 to {MEMORY_MAX_MIB} are possible"),
            ));
        }
        let path = self.directories.memory.join(format!("zero-{memory_mib}.mem"));
        let length = u64::from(memory_mib) << 20;
        if let Ok(metadata) = path.symlink_metadata() {
            // Without blocks there is nothing but zeros in it: a full verification for the price of a stat.
            if metadata.is_file() && metadata.len() == length && metadata.blocks() == 0 {
                return Ok(path);
            }
            tracing::warn!(%path, "the all-zero memory file was changed; a new one takes its place");
        }
        let workspace = self.workspace()?;
        let new = workspace.join("memory");
        let file = std::fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o644)
            .open(&new)
            .map_err(io_error("creating", &new))?;
        file.set_len(length).map_err(io_error("resizing", &new))?;
        file.sync_all().map_err(io_error("syncing", &new))?;
        rename_durably(&new, &path)?;
        Ok(path)
    }
}

#[async_trait]
impl VmStorage for Storage {
    async fn create_vm_files(&self, id: &VmId, disk_mib: u32) -> Result<VmFiles, StorageError> {
        let id = id.clone();
        self.blocking(move |inner, cancel| {
            let base = inner.scratch_base(disk_mib, &cancel)?;
            let disk = DiskManifest::new(disk_mib, base.file_name().unwrap_or_default().to_owned());
            inner.create_vm(&id, &disk, &cancel)
        })
        .await
    }

    async fn reserve_vm_directory(&self, id: &VmId) -> Result<Utf8PathBuf, StorageError> {
        let directory = self.0.vm_path(id);
        self.blocking(move |_, cancel| {
            cancel.check()?;
            // Not synced: it means something only while this server and its VMMs live.
            std::fs::DirBuilder::new()
                .mode(0o700)
                .create(&directory)
                .map_err(io_error("creating", &directory))?;
            let marker = directory.join(RESERVED);
            let marked =
                std::fs::File::create_new(&marker).map_err(|error| failed("creating", &marker, error));
            marked.and_then(|_| cancel.check()).inspect_err(|_| {
                let _ = remove_all(&directory);
            })?;
            Ok(directory)
        })
        .await
    }

    async fn finish_vm_files(&self, id: &VmId) -> Result<(), StorageError> {
        let marker = self.0.vm_path(id).join(UNFINISHED);
        // Not synced: should it come back with a crash of the host, the record still says that the VM is there.
        self.blocking(move |_, _| remove_all(&marker)).await
    }

    async fn is_unfinished(&self, id: &VmId) -> Result<bool, StorageError> {
        let directory = self.0.vm_path(id);
        self.blocking(move |_, _| {
            Ok(exists(&directory.join(UNFINISHED)) || !exists(&directory.join(MANIFEST)))
        })
        .await
    }

    async fn vm_files(&self, id: &VmId) -> Result<VmFiles, StorageError> {
        let id = id.clone();
        self.blocking(move |inner, _| {
            let directory = inner.vm_path(&id);
            let what = format!("the disk of VM {id}");
            let files = inner.files_of(directory, &inner.read_disk(&id)?);
            for disk in std::iter::once(&files.scratch).chain(&files.own) {
                for path in std::iter::once(&disk.path).chain(&disk.backing) {
                    if !exists(path) {
                        return Err(damaged(what, format!("{path} is missing")));
                    }
                }
            }
            Ok(files)
        })
        .await
    }

    async fn remove_vm_files(&self, id: &VmId) -> Result<(), StorageError> {
        let id = id.clone();
        self.blocking(move |inner, _| {
            let directory = inner.vm_path(&id);
            if !exists(&directory) {
                return Ok(());
            }
            // Removed with the workspace, also after a crash.
            let moved = inner.workspace().and_then(|workspace| {
                std::fs::rename(&directory, workspace.join("vm"))
                    .map_err(|error| failed("removing", &directory, error))
            });
            match moved {
                Ok(()) => sync_directory(&inner.directories.vms),
                Err(_) if !exists(&directory) => Ok(()),
                Err(error) => {
                    tracing::warn!(%error, "a VM's files are removed where they are");
                    remove_in_place(&directory)
                }
            }
        })
        .await
    }

    async fn write_back(&self, id: &VmId, give_up_missing: bool) -> Result<(), StorageError> {
        let id = id.clone();
        self.blocking(move |inner, cancel| inner.write_back(&id, give_up_missing, &cancel)).await
    }

    async fn vm_directories(&self) -> Result<Vec<VmId>, StorageError> {
        self.blocking(|inner, _| {
            remove_leftovers(&inner.directories.work)?;
            Ok(names_in(&inner.directories.vms)?.iter().filter_map(|name| name.parse().ok()).collect())
        })
        .await
    }

    fn vm_directory(&self, id: &VmId) -> Utf8PathBuf {
        self.0.vm_path(id)
    }

    async fn zero_memory(&self, memory_mib: u32) -> Result<Utf8PathBuf, StorageError> {
        self.blocking(move |inner, _| inner.zero_memory_file(memory_mib)).await
    }

    async fn inspect_disk(
        &self,
        path: &Utf8Path,
        known: Option<DiskFormat>,
    ) -> Result<DiskFormat, StorageError> {
        let path = path.to_owned();
        self.blocking(move |_, _| disks::inspect(&path, known)).await
    }

    async fn real_disk_path(&self, path: &Utf8Path) -> Result<Utf8PathBuf, StorageError> {
        let path = path.to_owned();
        self.blocking(move |_, _| {
            disks::open(&path)?;
            canonical(&path)
        })
        .await
    }

    async fn inspect_folder(&self, path: &Utf8Path) -> Result<Utf8PathBuf, StorageError> {
        let path = path.to_owned();
        self.blocking(move |inner, _| folders::inspect(&path, inner.directories.root())).await
    }

    async fn space(&self) -> Result<Space, StorageError> {
        let path = self.0.directories.vms.clone();
        self.blocking(move |inner, _| inner.room.space(&path)).await
    }

    async fn vm_disk_usage(&self, id: &VmId) -> Result<u64, StorageError> {
        let directory = self.0.vm_path(id);
        self.blocking(move |_, _| disk_usage(&directory)).await
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
    // Without it nothing is written back any more: what is left is garbage.
    remove_all(&directory.join(MANIFEST))?;
    remove_all(directory)?;
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
