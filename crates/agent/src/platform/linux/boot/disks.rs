//! Disks by serial number, file systems by superblock.

use std::fs;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::time::Instant;

use super::{BootError, DeviceEvents, failed};

/// A disk with what is on it.
pub(super) struct Disk {
    /// Path of its device.
    pub(super) device: String,
    /// Its file system, as `mount` calls it.
    pub(super) file_system: &'static str,
}

/// Waits for the disk with this serial number.
pub(super) fn find(serial: &str, events: &mut DeviceEvents, deadline: Instant) -> Result<Disk, BootError> {
    let device = events.wait_for(&format!("disk with the serial `{serial}`"), deadline, || device(serial))?;
    let file_system = file_system(&device)?
        .ok_or_else(|| BootError::FileSystem { disk: format!("{device} (`{serial}`)") })?;
    Ok(Disk { device, file_system })
}

/// The device of the disk with this serial number, if it is there.
pub(super) fn device(serial: &str) -> Option<String> {
    fs::read_dir("/sys/block").ok()?.flatten().find_map(|entry| {
        let found = fs::read_to_string(entry.path().join("serial")).unwrap_or_default();
        let device = format!("/dev/{}", entry.file_name().to_string_lossy());
        // The kernel lists a disk a little before its device node is there.
        (found.trim() == serial && fs::metadata(&device).is_ok()).then_some(device)
    })
}

/// EROFS and ext4 both keep their superblock at 1 KiB: magic at 0 and at 56 of it.
fn file_system(device: &str) -> Result<Option<&'static str>, BootError> {
    let read = || {
        let mut file = fs::File::open(device)?;
        let mut block = [0u8; 64];
        file.seek(SeekFrom::Start(1024))?;
        file.read_exact(&mut block)?;
        Ok::<_, std::io::Error>(block)
    };
    let block = read().map_err(failed(format!("read {device}")))?;
    Ok(if block[..4] == 0xe0f5_e1e2_u32.to_le_bytes() {
        Some("erofs")
    } else if block[56..58] == 0xef53_u16.to_le_bytes() {
        Some("ext4")
    } else {
        None
    })
}
