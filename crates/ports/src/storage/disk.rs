//! Files of VMs: their directories and their disks.

use async_trait::async_trait;
use camino::{Utf8Path, Utf8PathBuf};
use microvm_types::VmId;
use microvm_types::template::DiskFormat;
use microvm_types::vm::VmRecord;

use super::error::StorageError;
use crate::device::MachineDisk;

/// The files of one VM.
#[derive(Debug, Clone)]
pub struct VmFiles {
    /// Directory of this VM.
    pub directory: Utf8PathBuf,
    /// The disk that holds all it writes.
    pub scratch: MachineDisk,
    /// Further writable disks that it has copies of, or that were branched: to be used instead of the user's files.
    pub own: Vec<MachineDisk>,
}

/// The room that VMs grow in: of their file system, and of the limit for all of them if there is one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Space {
    /// Bytes that can still be written.
    pub free: u64,
    /// Bytes in all.
    pub total: u64,
}

/// Handling of writes to a disk file of the user that cannot take them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LostDisks {
    /// They are kept, and it is an error.
    Keep,
    /// They are given up if the file was surely removed: its folder is there, on the same file system.
    GiveUpRemoved,
    /// They are given up, whatever keeps them from the file.
    Forget,
}

/// Files of VMs.
#[async_trait]
pub trait VmStorage: Send + Sync {
    /// Makes the directory and the scratch disk of a VM, or nothing at all.
    async fn create_vm_files(&self, id: &VmId, disk_mib: u32) -> Result<VmFiles, StorageError>;

    /// Makes the directory of a VM that may be made later, for a VMM that is started before: [`VmStorage::create_vm_files`]
    /// and [`crate::SnapshotStore::create_vm_files_from`] fill it, [`VmStorage::remove_vm_files`] removes it. To
    /// [`VmStorage::vm_directories`] it is one like others.
    ///
    /// # Errors
    /// [`StorageError::DiskFull`] and others; nothing is left then.
    async fn reserve_vm_directory(&self, id: &VmId) -> Result<Utf8PathBuf, StorageError>;

    /// Notes that the VM has been reported as made. Until then its directory is that of a creation that may have been cut
    /// off, and [`VmStorage::is_unfinished`]. Doing it again is fine.
    async fn finish_vm_files(&self, id: &VmId) -> Result<(), StorageError>;

    /// True if an interrupted creation or removal left the directory of a VM: the only ones that may be removed
    /// without a record that says so. One made by an older version never is.
    async fn is_unfinished(&self, id: &VmId) -> Result<bool, StorageError>;

    /// Keeps a copy of the record of a VM in the VM's directory, durably and in place of an earlier one: by it an older copy
    /// of the database is known as one. The directory is finished then, see [`VmStorage::finish_vm_files`].
    async fn keep_record(&self, record: &VmRecord) -> Result<(), StorageError>;

    /// The copy that [`VmStorage::keep_record`] made last; `None` if there is none, as in a directory made by an older version.
    ///
    /// # Errors
    /// [`StorageError::Damaged`] if it cannot be read or is that of another VM.
    async fn kept_record(&self, id: &VmId) -> Result<Option<VmRecord>, StorageError>;

    /// The files of a VM made earlier.
    async fn vm_files(&self, id: &VmId) -> Result<VmFiles, StorageError>;

    /// Removes all files of a VM; nothing there is fine. The directory vanishes first from sight (renamed), so that a
    /// crash in the middle leaves only garbage that the next start removes.
    async fn remove_vm_files(&self, id: &VmId) -> Result<(), StorageError>;

    /// Gives the user's disk files what the VM wrote to those disks since they were branched; the VM writes to the files
    /// themselves again afterwards. It has no machine. Interrupted, it can be done again; nothing to do is fine.
    ///
    /// # Errors
    /// [`StorageError::NotWrittenBack`] if somebody else uses or has changed a file: nothing was written to it, and what
    /// the VM wrote is kept. The same for a file that is not there, unless `lost` says otherwise.
    /// [`StorageError::HalfWrittenBack`] if a write-back that had begun cannot be ended, whatever `lost` says.
    async fn write_back(&self, id: &VmId, lost: LostDisks) -> Result<(), StorageError>;

    /// Ids of all VM directories, known to the store or not; leftovers of interrupted work are removed on the way.
    async fn vm_directories(&self) -> Result<Vec<VmId>, StorageError>;

    /// Path of the directory of a VM, which need not exist.
    fn vm_directory(&self, id: &VmId) -> Utf8PathBuf;

    /// The immutable all-zero memory file of so many MiB, made if missing. Takes no space on disk.
    async fn zero_memory(&self, memory_mib: u32) -> Result<Utf8PathBuf, StorageError>;

    /// Examines a disk file of the user's: that it exists, can be opened, and has the `known` format. With `None` its
    /// first bytes tell; a guest may have written them, so this is done once per VM, before the VM has the disk. A file
    /// that is known to be raw is raw whatever it begins with.
    ///
    /// # Errors
    /// [`StorageError::BadInput`] if it is no such disk, or a qcow2 file that names other files.
    async fn inspect_disk(
        &self,
        path: &Utf8Path,
        known: Option<DiskFormat>,
    ) -> Result<DiskFormat, StorageError>;

    /// The path of a disk file of the user's without symbolic links: what the file's name leads to is chosen once.
    ///
    /// # Errors
    /// [`StorageError::BadInput`] if it is not there.
    async fn real_disk_path(&self, path: &Utf8Path) -> Result<Utf8PathBuf, StorageError>;

    /// Examines a folder of the host that a guest is to see; returns its real path, without symbolic links. Refused: what
    /// is not a folder, a folder of the kernel's, and whatever shows the store itself to a guest.
    async fn inspect_folder(&self, path: &Utf8Path) -> Result<Utf8PathBuf, StorageError>;

    /// Bytes that can still be written to the file system of all VMs, and its size.
    async fn space(&self) -> Result<Space, StorageError>;

    /// Bytes that the files of a VM take on disk.
    async fn vm_disk_usage(&self, id: &VmId) -> Result<u64, StorageError>;
}
