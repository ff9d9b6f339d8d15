//! Takes in a snapshot from a file. Nothing in it is believed: every length is limited before it is used, every part
//! verified, every name replaced by one of ours.

use std::fs::{File, OpenOptions};
use std::io::{BufReader, Read, Write};
use std::os::unix::fs::OpenOptionsExt;

use camino::Utf8Path;
use microvm_durable::cancel::Cancel;
use microvm_durable::error::{bad_input, errno, io_error};
use microvm_durable::files::{exists, make_directory};
use microvm_ports::snapshot::{ImportLimits, SnapshotInfo};
use microvm_ports::{Progress, StateParts, StorageError};
use microvm_types::SnapshotId;
use rustix::fs::{Mode, OFlags};

use super::Exchange;
use super::export_format::{ExportManifest, MAGIC, MANIFEST_MAX, VERSIONS, WINDOW_LOG};
use super::import_disk::ImportedLayers;
use super::manifest::{LAYERS_MAX, MEMORY, check_description};
use super::memory_base::MEMORY_MAX_MIB;
use super::open_memory::MEMORY_STAMP;
use super::page_file::{PAGE, PageFile, content_pages};
use super::part::{Part, PartHasher, remember};
use super::write::STATE_MAX;
use crate::vms::scratch::{DISK_MAX_MIB, DISK_MIN_MIB};

/// The stream of parts.
pub(crate) struct Parts<'a> {
    from: &'a Utf8Path,
    stream: Box<dyn Read + 'a>,
    cancel: &'a Cancel,
    progress: &'a Progress,
    done: u64,
    total: u64,
}

impl Parts<'_> {
    /// The error for something wrong in the file.
    pub(crate) fn wrong(&self, detail: impl Into<String>) -> StorageError {
        bad_input(self.from.as_str(), detail)
    }

    fn fill(&mut self, buffer: &mut [u8]) -> Result<(), StorageError> {
        self.cancel.check()?;
        self.stream.read_exact(buffer).map_err(|error| match error.kind() {
            std::io::ErrorKind::UnexpectedEof => bad_input(self.from.as_str(), "it ends early"),
            _ => bad_input(self.from.as_str(), format!("it cannot be read: {error}")),
        })
    }

    /// Reads one part, verified; `take` gets its bytes in order.
    pub(crate) fn part(
        &mut self,
        name: &str,
        part: &Part,
        mut take: impl FnMut(&mut [u8]) -> Result<(), StorageError>,
    ) -> Result<(), StorageError> {
        let mut hasher = PartHasher::new(part.length);
        let mut buffer = vec![0; 1 << 18];
        let mut left = part.length;
        while left > 0 {
            let count = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
            self.fill(&mut buffer[..count])?;
            hasher.update(&buffer[..count]);
            take(&mut buffer[..count])?;
            left -= count as u64;
            self.done += count as u64;
            self.progress.advance("importing", self.done, Some(self.total));
        }
        match part.damage(name, &hasher.finish()) {
            None => Ok(()),
            Some(damage) => Err(self.wrong(format!(
                "{name}, bytes {} to {}: {}",
                damage.first_byte, damage.end_byte, damage.detail
            ))),
        }
    }

    /// Reads one part into a new file.
    pub(crate) fn part_to(&mut self, name: &str, part: &Part, path: &Utf8Path) -> Result<(), StorageError> {
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o400)
            .open(path)
            .map_err(io_error("creating", path))?;
        self.part(name, part, |bytes| file.write_all(bytes).map_err(io_error("writing", path)))?;
        file.sync_all().map_err(io_error("syncing", path))
    }
}

impl Exchange {
    /// See [`microvm_ports::snapshot::SnapshotStore::import_snapshot`].
    pub(crate) fn import_snapshot(
        &self,
        id: &SnapshotId,
        from: &Utf8Path,
        limits: ImportLimits,
        cancel: &Cancel,
        progress: &Progress,
    ) -> Result<SnapshotInfo, StorageError> {
        if exists(&self.ground.snapshot_path(id)) {
            return Err(StorageError::NameTaken(id.to_string()));
        }
        let file = open(from)?;
        let mut parts = Parts { from, stream: Box::new(file), cancel, progress, done: 0, total: 0 };
        let mut start = [0; 20];
        parts.fill(&mut start)?;
        if !start.starts_with(MAGIC) {
            return Err(parts.wrong("it is not an exported snapshot"));
        }
        let version = u32::from_le_bytes([start[16], start[17], start[18], start[19]]);
        if !VERSIONS.contains(&version) {
            let (first, last) = (VERSIONS.start(), VERSIONS.end());
            return Err(
                parts.wrong(format!("it has version {version}, this program reads {first} to {last}"))
            );
        }
        let stream = std::mem::replace(&mut parts.stream, Box::new(std::io::empty()));
        let mut decoder = zstd::stream::read::Decoder::new(stream)
            .map_err(|error| bad_input(from.as_str(), error.to_string()))?;
        // A file chooses its window: without a limit a few bytes could ask for gigabytes.
        decoder.window_log_max(WINDOW_LOG).map_err(|error| bad_input(from.as_str(), error.to_string()))?;
        parts.stream = Box::new(decoder);
        let ExportManifest { mut snapshot, base } = read_manifest(&mut parts)?;
        self.check_export(&parts, &ExportManifest { snapshot: snapshot.clone(), base: base.clone() })?;
        let sizes = (snapshot.description.memory_mib, snapshot.description.disk_mib);
        if sizes.0 > limits.memory_mib || sizes.1 > limits.disk_mib {
            return Err(parts.wrong(format!(
                "it is of a VM with {} MiB of memory and {} MiB of disk, and the limits here are {} and {}",
                sizes.0, sizes.1, limits.memory_mib, limits.disk_mib
            )));
        }
        // All of it: a small file may hold much, since what it packs may be nothing but repetition.
        parts.total = total_length(&snapshot, &base).unwrap_or(u64::MAX);
        let _room = self.ground.room.require_foreign(
            &self.ground.directories.snapshots,
            parts.total,
            "importing the snapshot",
        )?;

        let workspace = self.ground.workspace()?;
        let new = workspace.join("snapshot");
        make_directory(&new, 0o700)?;
        for state in snapshot.state() {
            parts.part_to(&state.label(), state.part, &new.join(state.file_name()))?;
        }
        let pages = new.join(MEMORY);
        parts.part_to("memory", &snapshot.memory.file, &pages)?;
        let index = PageFile::open(&pages, snapshot.pages())?
            .map_err(|bad| parts.wrong(format!("memory: {}", bad.0)))?;
        if content_pages(&index.runs) * PAGE != snapshot.memory.content_bytes {
            return Err(parts.wrong("memory: its manifest counts other pages than there are"));
        }
        drop(index);
        remember(&pages, &snapshot.memory.file, &new.join(MEMORY_STAMP));
        snapshot.disk.base = self.import_base(&mut parts, &workspace, &snapshot.disk, &base)?;
        let layers = ImportedLayers::read(&self.ground, &mut parts, &workspace, &snapshot.disk)?;
        // One byte more than there is: only at its end does the decoder compare the checksum of the stream.
        if parts.stream.read(&mut [0]).map_or(true, |count| count > 0) {
            return Err(parts.wrong("there is something after its last part, or its end is damaged"));
        }
        snapshot.disk.layers = layers.parts();
        snapshot.id = id.clone();
        let sha256 = self.records.publish_snapshot(&new, &snapshot, cancel)?;
        // The manifest names them now; until here they went with a failure.
        layers.keep();
        self.catalog.snapshot_info(snapshot, sha256)
    }

    /// True if everything that is claimed is possible.
    fn check_export(&self, parts: &Parts<'_>, export: &ExportManifest) -> Result<(), StorageError> {
        let ExportManifest { snapshot, base } = export;
        check_description(&snapshot.description)?;
        let (memory_mib, disk) = (snapshot.description.memory_mib, &snapshot.disk);
        let memory = u64::from(memory_mib) << 20;
        let disk_bytes = u64::from(disk.disk_mib) << 20;
        // An index takes 16 bytes for at least one page; a qcow2 file is hardly larger than what it holds.
        let packed_max = |bytes: u64| bytes + bytes / PAGE * 16 + 2 * PAGE;
        let sound = [&snapshot.memory.file, base]
            .into_iter()
            .chain(snapshot.state().map(|state| state.part))
            .chain(disk.layers.iter().map(|layer| &layer.file))
            .all(Part::is_sound);
        let possible = (1..=MEMORY_MAX_MIB).contains(&memory_mib)
            && (DISK_MIN_MIB..=DISK_MAX_MIB).contains(&disk.disk_mib)
            && snapshot.description.disk_mib == disk.disk_mib
            && snapshot.parent.is_none()
            && snapshot.own_disks.is_empty()
            && snapshot.memory.depth == 0
            && (1..=StateParts::MOST).contains(&snapshot.state().count())
            && snapshot.state_bytes().is_some_and(|bytes| bytes <= STATE_MAX)
            && snapshot.memory.file.length <= packed_max(memory)
            && base.length <= packed_max(disk_bytes)
            && disk.layers.len() <= LAYERS_MAX
            && disk.layers.iter().all(|layer| layer.file.length <= disk_bytes * 2 + (64 << 20));
        if !sound || !possible {
            return Err(parts.wrong("its manifest names sizes that cannot be"));
        }
        match total_length(snapshot, base) {
            Some(total) if total <= self.import_most => Ok(()),
            _ => Err(parts.wrong(format!("it is larger than {} bytes", self.import_most))),
        }
    }
}

fn total_length(snapshot: &super::manifest::SnapshotManifest, base: &Part) -> Option<u64> {
    let layers = snapshot.disk.layers.iter().map(|layer| layer.file.length);
    [snapshot.state_bytes()?, snapshot.memory.file.length, base.length]
        .into_iter()
        .chain(layers)
        .try_fold(0u64, u64::checked_add)
}

fn read_manifest(parts: &mut Parts<'_>) -> Result<ExportManifest, StorageError> {
    let mut length = [0; 4];
    parts.fill(&mut length)?;
    let length = u32::from_le_bytes(length);
    if length > MANIFEST_MAX {
        return Err(parts.wrong(format!("its manifest has {length} bytes")));
    }
    let mut bytes = vec![0; length as usize];
    parts.fill(&mut bytes)?;
    microvm_durable::manifest::decode(&bytes).map_err(|detail| parts.wrong(detail))
}

/// Opens a regular file, never waiting for a pipe.
fn open(from: &Utf8Path) -> Result<BufReader<File>, StorageError> {
    if !from.is_absolute() {
        return Err(bad_input(from.as_str(), "an absolute path is needed"));
    }
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = match rustix::fs::open(from.as_std_path(), flags, Mode::empty()) {
        Err(rustix::io::Errno::NOENT) => return Err(bad_input(from.as_str(), "there is no such file")),
        Err(rustix::io::Errno::ACCESS) => return Err(bad_input(from.as_str(), "it may not be read")),
        other => File::from(other.map_err(errno("opening", from))?),
    };
    if !file.metadata().map_err(io_error("examining", from))?.is_file() {
        return Err(bad_input(from.as_str(), "it is not a file"));
    }
    Ok(BufReader::with_capacity(1 << 17, file))
}
