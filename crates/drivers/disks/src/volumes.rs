//! Named volumes.
//!
//! ```text
//!  volumes/<id>/volume.json   the record          volumes/<id>/disk.raw   a sparse raw disk with an ext4
//! ```
//!
//! A volume appears by one rename after everything in it is synced, and vanishes by one. Its file system is written by guests:
//! nothing here mounts or reads it.

use std::fs::OpenOptions;
use std::sync::Arc;

use camino::{Utf8Path, Utf8PathBuf};
use microvm_durable::cancel::Cancel;
use microvm_durable::error::{bad_input, damaged, failed, io_error};
use microvm_durable::files::{disk_usage, exists, make_directory, names_in, rename_durably, sync_directory};
use microvm_durable::manifest;
use microvm_ports::StorageError;
use microvm_types::volume::VolumeRecord;
use microvm_types::{Listed, Unreadable, VolumeId};

use crate::ground::Ground;
use crate::vms::scratch::{DISK_MAX_MIB, DISK_MIN_MIB, MKE2FS};

/// Holds the record of a volume.
const RECORD: &str = "volume.json";
/// The disk of a volume.
const DISK: &str = "disk.raw";
/// Less free space than this and no volume is begun: tables and journal of its file system are holes at first.
const SPACE_MIN: u64 = 16 << 20;

/// The volumes of a store.
#[derive(Clone)]
pub(crate) struct Volumes {
    pub(crate) ground: Arc<Ground>,
}

impl Volumes {
    fn path(&self, id: &VolumeId) -> Utf8PathBuf {
        self.ground.directories.volumes.join(id.as_str())
    }

    pub(crate) fn disk(&self, id: &VolumeId) -> Utf8PathBuf {
        self.path(id).join(DISK)
    }

    pub(crate) fn create(&self, record: &VolumeRecord, cancel: &Cancel) -> Result<(), StorageError> {
        let target = self.path(&record.id);
        if exists(&target) {
            return Err(StorageError::NameTaken(record.id.to_string()));
        }
        let volumes = &self.ground.directories.volumes;
        let _room = self.ground.room.require(volumes, SPACE_MIN, "creating the volume")?;
        let workspace = self.ground.workspace()?;
        let new = workspace.join("volume");
        make_directory(&new, 0o700)?;
        format(&new.join(DISK), record, cancel)?;
        manifest::write(&new.join(RECORD), record)?;
        sync_directory(&new)?;
        cancel.check()?;
        rename_durably(&new, &target)
    }

    pub(crate) fn list(&self) -> Result<Listed<VolumeRecord>, StorageError> {
        let mut listed = Listed { found: Vec::new(), unreadable: Vec::new() };
        for name in names_in(&self.ground.directories.volumes)? {
            let Ok(id) = name.parse::<VolumeId>() else { continue };
            match self.read(&id) {
                Ok(record) => listed.found.push(record),
                // It was removed between the two looks.
                Err(_) if !exists(&self.path(&id)) => {}
                Err(error) => listed.unreadable.push(Unreadable::new(id.as_str(), error.to_string())),
            }
        }
        listed.found.sort_by(|one, other| one.id.cmp(&other.id));
        Ok(listed)
    }

    fn read(&self, id: &VolumeId) -> Result<VolumeRecord, StorageError> {
        let what = || format!("the volume {id}");
        let record: VolumeRecord = manifest::read(&self.path(id).join(RECORD), &what())?;
        if record.id != *id {
            return Err(damaged(what(), format!("its record is that of {}", record.id)));
        }
        let length = self.disk(id).metadata().map_err(io_error("examining", &self.disk(id)))?.len();
        if length != u64::from(record.size_mib) << 20 {
            let detail = format!("its disk should have {} MiB, but has {length} bytes", record.size_mib);
            return Err(damaged(what(), detail));
        }
        Ok(record)
    }

    pub(crate) fn usage(&self, id: &VolumeId) -> Result<u64, StorageError> {
        disk_usage(&self.path(id))
    }

    /// Out of sight first, then away.
    pub(crate) fn remove(&self, id: &VolumeId) -> Result<(), StorageError> {
        let path = self.path(id);
        if !exists(&path) {
            return Ok(());
        }
        let workspace = self.ground.workspace()?;
        std::fs::rename(&path, workspace.join("volume")).map_err(|error| failed("removing", &path, error))?;
        sync_directory(&self.ground.directories.volumes)
    }
}

/// Makes a sparse raw disk with an empty ext4, without mounting it.
fn format(path: &Utf8Path, record: &VolumeRecord, cancel: &Cancel) -> Result<(), StorageError> {
    let size = record.size_mib;
    if !(DISK_MIN_MIB..=DISK_MAX_MIB).contains(&size) {
        let detail = format!("{size} MiB were asked for; {DISK_MIN_MIB} to {DISK_MAX_MIB} are possible");
        return Err(bad_input("the volume", detail));
    }
    let file =
        OpenOptions::new().write(true).create_new(true).open(path).map_err(io_error("creating", path))?;
    file.set_len(u64::from(size) << 20).map_err(io_error("resizing", path))?;
    let mut command = MKE2FS.command()?;
    command
        // With checksums of metadata, unlike scratch disks: a volume is kept for long. 16 bytes are the longest label.
        .args(["-q", "-F", "-t", "ext4", "-b", "4096", "-m", "0", "-I", "256", "-L"])
        .arg(record.name.as_str().get(..16).unwrap_or(record.name.as_str()))
        .args(["-O", "^64bit,^resize_inode,metadata_csum,extent,flex_bg,sparse_super2"])
        // Tables and journal are holes of a fresh file, zero already: neither now nor in the guest need they be written.
        .args(["-E", "lazy_itable_init=1,lazy_journal_init=1,nodiscard,root_owner=0:0,packed_meta_blocks=1,assume_storage_prezeroed=1"])
        .args(["-J", if size < 128 { "size=4" } else { "size=16" }])
        .arg(path.as_str());
    MKE2FS.run(command, cancel, |_| {})?;
    file.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(0o600))
        .map_err(io_error("setting the mode of", path))?;
    file.sync_all().map_err(io_error("syncing", path))
}
