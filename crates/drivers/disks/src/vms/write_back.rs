//! Gives the user's files what their VM wrote while branches kept them still (docs/design/0014).
//!
//! Whatever is interrupted here is done again: until a file has everything, the manifest names what it still needs.

use std::fs::{File, TryLockError};
use std::os::unix::fs::FileExt;

use camino::Utf8Path;
use microvm_durable::cancel::Cancel;
use microvm_durable::device::Device;
use microvm_durable::error::io_error;
use microvm_durable::files::exists;
use microvm_ports::StorageError;
use microvm_ports::storage::LostDisks;
use microvm_types::VmId;

use super::Tops;
use super::manifest::{DiskManifest, Home, MANIFEST, OwnDisk};
use super::own_disk::{Left, open, size_of};
use super::qcow2_map::{CLUSTER, Cluster, PER_TABLE, Qcow2Map};

/// A disk whose content is to be written.
struct Source {
    /// Newest first.
    maps: Vec<Qcow2Map>,
    /// Raw layer below; `None`: the content that the file has already.
    base: Option<(File, camino::Utf8PathBuf)>,
}

/// Reads at a place; what the file has no bytes of is zero.
pub(super) fn read_padded(
    file: &File,
    path: &Utf8Path,
    mut at: u64,
    mut into: &mut [u8],
) -> Result<(), StorageError> {
    while !into.is_empty() {
        match file.read_at(into, at).map_err(io_error("reading", path))? {
            0 => {
                into.fill(0);
                return Ok(());
            }
            count => {
                at += count as u64;
                into = &mut into[count..];
            }
        }
    }
    Ok(())
}

impl Tops {
    /// See [`microvm_ports::VmStorage::write_back`].
    pub(crate) fn write_back(&self, vm: &VmId, lost: LostDisks, cancel: &Cancel) -> Result<(), StorageError> {
        let directory = self.ground.vm_path(vm);
        // Without a manifest it is the rest of a removal.
        if !exists(&directory.join(MANIFEST)) {
            return Ok(());
        }
        let lock = self.ground.disk_lock(vm);
        let _alone = lock.hold();
        let mut disk = self.vms.read_disk(vm)?;
        let serials = disk.own.iter().filter(|own| own.home.is_some()).map(|own| own.serial.clone());
        for serial in serials.collect::<Vec<_>>() {
            let Some(index) = disk.own.iter().position(|own| own.serial == serial) else { continue };
            let Some(home) = disk.own[index].home.clone() else { continue };
            match self.write_back_one(vm, &mut disk, index, lost, cancel) {
                Ok(()) => {}
                // One that cannot even be opened takes nothing, whatever is mended, and one that somebody replaced or wrote
                // to since has no half of ours.
                Err(error) if disk.own[index].has_begun() && holds_our_half(&disk.own[index]) => {
                    cancel.check()?;
                    return Err(half_written(&home, error, lost));
                }
                Err(error) if lost == LostDisks::Forget => {
                    cancel.check()?;
                    tracing::warn!(%vm, disk = serial, path = %home.path, %error, "what the VM wrote to this disk is given up, as was asked");
                }
                Err(error) => return Err(error),
            }
            disk.own.remove(index);
            self.vms.write_disk(vm, &disk)?;
            self.vms.remove_stray_tops(&directory, &disk)?;
        }
        Ok(())
    }

    /// Writes one disk back to its file, or passes it over where `lost` allows that.
    fn write_back_one(
        &self,
        vm: &VmId,
        disk: &mut DiskManifest,
        index: usize,
        lost: LostDisks,
        cancel: &Cancel,
    ) -> Result<(), StorageError> {
        let directory = self.ground.vm_path(vm);
        let serial = disk.own[index].serial.clone();
        let Some(home) = disk.own[index].home.clone() else { return Ok(()) };
        if is_missing(&home.path)? {
            let refused = |reason: &str| {
                Err(StorageError::NotWrittenBack { path: home.path.clone(), reason: reason.to_owned() })
            };
            if lost == LostDisks::Keep {
                return refused("it is not there");
            }
            if !was_removed(&home)? {
                return refused("its directory is gone, or the file system that it is on is not mounted");
            }
            tracing::warn!(%vm, disk = serial, path = %home.path, "the file of a disk is gone: nothing is written back to it");
            return Ok(());
        }
        let file = open(&home.path, true)?;
        check_untouched(&file, &home, &disk.own[index])?;
        let source = self.content(&directory, &disk.own[index], &home)?;
        // From here on its changes are ours, and it is worth nothing without the rest.
        if let Some(home) = disk.own[index].home.as_mut() {
            (home.left, home.begun) = (None, Some(true));
            self.vms.write_disk(vm, disk)?;
        }
        match source.write(&file, &home.path, disk.own[index].bytes, cancel) {
            Ok(bytes) => {
                tracing::info!(%vm, disk = serial, path = %home.path, bytes, "written back");
                Ok(())
            }
            Err(error) => {
                // Whoever changes it until this is tried again is noticed; nothing is known of its content.
                let left = Left::of(&file, &home.path).ok();
                disk.own[index].home = Some(Home { left, holds_base: false, begun: Some(true), ..home });
                self.vms.write_disk(vm, disk)?;
                Err(error)
            }
        }
    }

    fn content(&self, directory: &Utf8Path, own: &OwnDisk, home: &Home) -> Result<Source, StorageError> {
        let files =
            std::iter::once(directory.join(&own.chain.top)).chain(self.vms.below_top(directory, &own.chain));
        let maps: Vec<_> = files.map(|path| Qcow2Map::open(&path, own.bytes)).collect::<Result<_, _>>()?;
        // All of it is looked at before the first byte is written: no half of it reaches the user's file.
        for map in &maps {
            map.check_all()?;
        }
        let base = match &own.base {
            Some(id) if !home.holds_base => {
                let path = self.ground.raw_layer_path(id);
                Some((File::open(&path).map_err(io_error("opening", &path))?, path))
            }
            _ => None,
        };
        Ok(Source { maps, base })
    }
}

/// True if the user's file is as a write-back that had begun left it.
fn holds_our_half(own: &OwnDisk) -> bool {
    let Some(home) = &own.home else { return false };
    let Ok(file) = open(&home.path, true) else { return false };
    let is_another = file.metadata().is_ok_and(|there| home.is_another(&there));
    let is_changed = |left: &Left| Left::of(&file, &home.path).is_ok_and(|now| !now.is_as(left));
    !is_another && !home.left.as_ref().is_some_and(is_changed)
}

/// The error of a write-back that had begun and could not be ended.
fn half_written(home: &Home, error: StorageError, lost: LostDisks) -> StorageError {
    match error {
        // Tried again by itself: told as what it is, by its kind.
        other if lost != LostDisks::Forget && !matches!(other, StorageError::NotWrittenBack { .. }) => other,
        StorageError::NotWrittenBack { reason, .. } => {
            StorageError::HalfWrittenBack { path: home.path.clone(), reason }
        }
        other => StorageError::HalfWrittenBack { path: home.path.clone(), reason: other.to_string() },
    }
}

/// True if there is surely nothing at a path; what cannot be looked at may well be there.
fn is_missing(path: &Utf8Path) -> Result<bool, StorageError> {
    match std::fs::symlink_metadata(path) {
        Ok(_) => Ok(false),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(true),
        Err(error) => Err(io_error("examining", path)(error)),
    }
}

/// True unless a file that is not there may be on a file system that is not mounted right now: the directory that it was in
/// is gone, or is on another file system than the file was.
fn was_removed(home: &Home) -> Result<bool, StorageError> {
    let Some(folder) = home.path.parent() else { return Ok(true) };
    match std::fs::metadata(folder) {
        Ok(found) => Ok(!Device::differ(home.device, Device::of(&found))),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(io_error("examining", folder)(error)),
    }
}

/// Nobody else has the file, or has written to it.
fn check_untouched(file: &File, home: &Home, own: &OwnDisk) -> Result<(), StorageError> {
    let refused = |reason: &str| {
        Err(StorageError::NotWrittenBack { path: home.path.clone(), reason: reason.to_owned() })
    };
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return refused("another VM or program has it open"),
        Err(TryLockError::Error(error)) => return Err(io_error("locking", &home.path)(error)),
    }
    if size_of(file, &home.path)? != own.bytes {
        return refused("it has another size than the VM's disk");
    }
    if home.is_another(&file.metadata().map_err(io_error("examining", &home.path))?) {
        return refused("another file is there than the VM was given");
    }
    match home.left {
        Some(left) if !Left::of(file, &home.path)?.is_as(&left) => {
            refused("somebody else has written to it since the VM was branched")
        }
        _ => Ok(()),
    }
}

impl Source {
    /// Writes what differs; returns how many bytes that were.
    fn write(&self, file: &File, path: &Utf8Path, bytes: u64, cancel: &Cancel) -> Result<u64, StorageError> {
        let size = usize::try_from(CLUSTER).unwrap_or(0);
        let (mut new, mut old) = (vec![0; size], vec![0; size]);
        let mut written = 0;
        let clusters = bytes.div_ceil(CLUSTER);
        for table in 0..clusters.div_ceil(PER_TABLE) {
            cancel.check()?;
            let index = usize::try_from(table).unwrap_or(usize::MAX);
            let tables = self.maps.iter().map(|map| map.clusters(index)).collect::<Result<Vec<_>, _>>()?;
            // The file has it already, and half a GiB need not be read.
            if self.base.is_none() && tables.iter().all(Option::is_none) {
                continue;
            }
            for number in table * PER_TABLE..clusters.min((table + 1) * PER_TABLE) {
                let within = usize::try_from(number % PER_TABLE).unwrap_or(0);
                let found = self.maps.iter().zip(&tables).find_map(|(map, table)| {
                    let cluster = table.as_ref()?[within];
                    (cluster != Cluster::Below).then_some((map, cluster))
                });
                let at = number * CLUSTER;
                let count = usize::try_from(bytes - at).unwrap_or(size).min(size);
                let new = &mut new[..count];
                match (found, &self.base) {
                    (Some((map, Cluster::Data(offset))), _) => map.read(offset, new)?,
                    (Some(_), _) => new.fill(0),
                    (None, Some((base, base_path))) => read_padded(base, base_path, at, new)?,
                    (None, None) => continue,
                }
                let old = &mut old[..count];
                read_padded(file, path, at, old)?;
                // Clusters that are equal stay unwritten, so that holes of a sparse file stay holes.
                if old != new {
                    file.write_all_at(new, at).map_err(io_error("writing", path))?;
                    written += count as u64;
                }
            }
        }
        file.sync_all().map_err(io_error("syncing", path))?;
        Ok(written)
    }
}
