//! A writable disk of the user's that takes part in a branch (docs/design/0014).
//!
//! ```text
//!            first branch                       later branches              the VM ends
//!  file ◀──  top ─▶ file, then file copied ──▶  top ─▶ layers ─▶ copy  ──▶  written back to the file
//! ```

use std::fs::{File, TryLockError};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};

use camino::Utf8Path;
use microvm_durable::cancel::Cancel;
use microvm_durable::device::Device;
use microvm_durable::error::{bad_input, errno, io_error};
use microvm_durable::files::{canonical, create_for_vmms};
use microvm_ports::StorageError;
use microvm_ports::snapshot::UserDisk;
use microvm_ports::storage::DiskFormat;
use rustix::fs::{Mode, OFlags, ResolveFlags, SeekFrom};
use serde::{Deserialize, Serialize};

use super::Tops;
use super::disks;
use super::manifest::{Chain, Home, OwnDisk};

/// Bytes that are read at once, and the grain in which zeros are left out.
const BUFFER: usize = 1 << 20;
const GRAIN: usize = 64 << 10;

/// Facts that change if another program writes to a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Left {
    inode: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    device: Option<Device>,
    length: u64,
    modified: (i64, i64),
}

impl Left {
    /// A file as it is now.
    pub(crate) fn of(file: &File, path: &Utf8Path) -> Result<Self, StorageError> {
        let metadata = file.metadata().map_err(io_error("examining", path))?;
        Ok(Self {
            inode: metadata.ino(),
            device: Device::of(&metadata),
            length: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
        })
    }

    /// True if this is the file that was seen, without a write in between.
    pub(crate) fn is_as(&self, before: &Self) -> bool {
        let same = |one: &Self| (one.inode, one.length, one.modified);
        same(self) == same(before) && !Device::differ(self.device, before.device)
    }
}

/// Size of a disk in a file or block device.
pub(crate) fn size_of(file: &File, path: &Utf8Path) -> Result<u64, StorageError> {
    let metadata = file.metadata().map_err(io_error("examining", path))?;
    if metadata.is_file() {
        return Ok(metadata.len());
    }
    if !metadata.file_type().is_block_device() {
        return Err(bad_input(path.as_str(), "it is neither a file nor a block device"));
    }
    rustix::fs::seek(file, SeekFrom::End(0)).map_err(errno("measuring", path))
}

/// Opens a file of the user's by its real path, never waiting for a pipe.
pub(crate) fn open(path: &Utf8Path, write: bool) -> Result<File, StorageError> {
    let access = if write { OFlags::RDWR } else { OFlags::RDONLY };
    let flags = access | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let resolve = ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let opened = rustix::fs::openat2(rustix::fs::CWD, path.as_std_path(), flags, Mode::empty(), resolve);
    opened.map(File::from).map_err(errno("opening", path))
}

impl Tops {
    /// A user's disk as it is noted before its first branch: a new top over the file itself.
    pub(crate) fn adopt_disk(&self, disk: &UserDisk, top: String) -> Result<OwnDisk, StorageError> {
        let what = || format!("the disk `{}`", disk.serial);
        // Known to be raw since its VM was created: what it begins with now may be the guest's.
        disks::inspect(&disk.path, Some(DiskFormat::Raw))?;
        let path = canonical(&disk.path)?;
        let file = open(&path, false)?;
        let metadata = file.metadata().map_err(io_error("examining", &path))?;
        if !metadata.is_file() {
            // Nothing tells whether somebody else has written to one.
            return Err(bad_input(what(), "a block device cannot be branched; a raw file can"));
        }
        // The VMM holds the lock of every disk that it writes (confinement), for as long as it lives.
        if !matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock)) {
            let advice = "another file is at its path than the one the VM has";
            return Err(bad_input(what(), advice));
        }
        let bytes = metadata.len();
        if bytes == 0 || !bytes.is_multiple_of(512) {
            return Err(bad_input(what(), format!("its {bytes} bytes are not a multiple of 512")));
        }
        Ok(OwnDisk {
            serial: disk.serial.clone(),
            bytes,
            chain: Chain::new(top, Vec::new()),
            base: None,
            home: Some(Home {
                path,
                inode: Some(metadata.ino()),
                device: Device::of(&metadata),
                left: None,
                holds_base: true,
                begun: Some(false),
            }),
        })
    }

    /// Copies the user's file, which has no writer any more, to the raw layer `id`.
    pub(crate) fn copy_home(
        &self,
        id: &str,
        bytes: u64,
        home: &mut Home,
        cancel: &Cancel,
    ) -> Result<(), StorageError> {
        let from = open(&home.path, false)?;
        // A time that is not on the disk yet would not be the same after a crash.
        from.sync_all().map_err(io_error("syncing", &home.path))?;
        let left = Left::of(&from, &home.path)?;
        if home.is_another(&from.metadata().map_err(io_error("examining", &home.path))?) {
            return Err(bad_input(home.path.as_str(), "another file is there than the one the VM has"));
        }
        let used = from.metadata().map_err(io_error("examining", &home.path))?.blocks() * 512;
        let _room = self.ground.room.require(
            &self.ground.directories.layers,
            used.min(bytes),
            "copying a disk for its branch",
        )?;
        let workspace = self.ground.workspace()?;
        let new = workspace.join("disk");
        let into = create_for_vmms(&new)?;
        copy(&from, &home.path, &into, &new, bytes, cancel)?;
        into.set_len(bytes).map_err(io_error("resizing", &new))?;
        into.sync_all().map_err(io_error("syncing", &new))?;
        // Looked at again: a write in the middle of the copy would be half in it.
        if !Left::of(&from, &home.path)?.is_as(&left) {
            return Err(bad_input(home.path.as_str(), "somebody else writes to it while a VM has it"));
        }
        let path = self.ground.raw_layer_path(id);
        std::fs::rename(&new, &path).map_err(io_error("renaming to", &path))?;
        (home.left, home.holds_base) = (Some(left), true);
        Ok(())
    }
}

/// Shares the blocks where the file system can, else copies what is not zero.
fn copy(
    from: &File,
    from_path: &Utf8Path,
    into: &File,
    into_path: &Utf8Path,
    bytes: u64,
    cancel: &Cancel,
) -> Result<(), StorageError> {
    if rustix::fs::ioctl_ficlone(into, from).is_ok() {
        return Ok(());
    }
    let mut buffer = vec![0; BUFFER];
    let mut at = 0;
    while at < bytes {
        cancel.check()?;
        // Holes are passed over; what does not know of holes (a block device) is all data.
        at = match rustix::fs::seek(from, SeekFrom::Data(at)) {
            Ok(data) => data / GRAIN as u64 * GRAIN as u64,
            Err(rustix::io::Errno::NXIO) => break,
            Err(_) => at,
        };
        let count = usize::try_from(bytes.saturating_sub(at)).unwrap_or(BUFFER).min(BUFFER);
        from.read_exact_at(&mut buffer[..count], at).map_err(io_error("reading", from_path))?;
        for (number, piece) in buffer[..count].chunks(GRAIN).enumerate() {
            if piece.iter().any(|byte| *byte != 0) {
                let place = at + (number * GRAIN) as u64;
                into.write_all_at(piece, place).map_err(io_error("writing", into_path))?;
            }
        }
        at += count as u64;
    }
    Ok(())
}
