//! Disk files of the user's.

use std::fs::{File, Metadata};
use std::io::Read;
use std::os::unix::fs::FileTypeExt;

use camino::Utf8Path;
use microvm_durable::error::{bad_input, errno, io_error};
use microvm_ports::StorageError;
use microvm_ports::storage::DiskFormat;
use rustix::fs::{Mode, OFlags};

use super::qcow2::{MAGIC, Qcow2Header};

/// Opens a disk file for reading. Refused: what is not a file or block device.
pub(crate) fn open(path: &Utf8Path) -> Result<(File, Metadata), StorageError> {
    if !path.is_absolute() {
        return Err(bad_input(path.as_str(), "the path of a disk must be absolute"));
    }
    // Not blocking: a FIFO would make us wait for ever.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let descriptor = match rustix::fs::open(path.as_std_path(), flags, Mode::empty()) {
        Err(rustix::io::Errno::NOENT) => return Err(bad_input(path.as_str(), "there is no such file")),
        Err(rustix::io::Errno::ACCESS) => return Err(bad_input(path.as_str(), "it may not be read")),
        other => other.map_err(errno("opening", path))?,
    };
    let file = File::from(descriptor);
    let metadata = file.metadata().map_err(io_error("examining", path))?;
    if !metadata.is_file() && !metadata.file_type().is_block_device() {
        return Err(bad_input(path.as_str(), "it is neither a file nor a block device"));
    }
    Ok((file, metadata))
}

/// Examines a disk file. With `known: None` its first bytes tell the format; a file that is known to be raw is raw whatever
/// a guest has written there. Refused: what cannot be a disk, and qcow2 files that name other files.
pub(crate) fn inspect(path: &Utf8Path, known: Option<DiskFormat>) -> Result<DiskFormat, StorageError> {
    let (mut file, metadata) = open(path)?;
    let device = metadata.file_type().is_block_device();
    if known != Some(DiskFormat::Raw) {
        let mut start = Vec::with_capacity(4096);
        file.by_ref().take(4096).read_to_end(&mut start).map_err(io_error("reading", path))?;
        if known.is_some() || start.starts_with(&MAGIC.to_be_bytes()) {
            // A device has no length to hold the header's places against.
            let length = if device { u64::MAX } else { metadata.len() };
            return match Qcow2Header::parse(&start, length) {
                Ok(_) => Ok(DiskFormat::Qcow2),
                Err(error) => Err(bad_input(path.as_str(), error.to_string())),
            };
        }
    }
    if !device && (metadata.len() == 0 || !metadata.len().is_multiple_of(512)) {
        return Err(bad_input(
            path.as_str(),
            format!("its length of {} bytes is not a multiple of 512", metadata.len()),
        ));
    }
    Ok(DiskFormat::Raw)
}
