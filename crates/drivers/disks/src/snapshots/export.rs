//! Writes a snapshot to one file.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;

use camino::{Utf8Path, Utf8PathBuf};
use microvm_durable::cancel::Cancel;
use microvm_durable::error::{bad_input, errno, io_error};
use microvm_durable::files::{exists, remove_all, sync_directory};
use microvm_durable::workspace::Workspace;
use microvm_ports::{Progress, StorageError};
use microvm_types::SnapshotId;
use rustix::fs::{CWD, RenameFlags, renameat_with};

use super::Exchange;
use super::difference::difference;
use super::export_format::{ExportManifest, MAGIC, version_of};
use super::manifest::{MEMORY, MemoryPart, SnapshotManifest, damage};
use super::open_memory::Bases;
use super::page_file::{PAGE, content_pages};
use super::part::{Part, PartHasher};
use super::view::{BaseFile, View};
use super::write_pages::write_pages;
use crate::ground::{Pin, layer_key};

/// zstd's own default: about 300 MB/s, and memory shrinks to a third.
const LEVEL: i32 = 3;

/// A file that goes if it was not finished.
struct Unfinished(Utf8PathBuf);

impl Drop for Unfinished {
    fn drop(&mut self) {
        if let Err(error) = remove_all(&self.0) {
            tracing::warn!(%error, "an unfinished export is left behind");
        }
    }
}

/// One part to be written.
struct Piece<'a> {
    name: String,
    path: Utf8PathBuf,
    part: &'a Part,
}

impl Exchange {
    /// See [`microvm_ports::snapshot::SnapshotStore::export_snapshot`]. An existing file is never replaced.
    pub(crate) fn export_snapshot(
        &self,
        id: &SnapshotId,
        to: &Utf8Path,
        cancel: &Cancel,
        progress: &Progress,
    ) -> Result<u64, StorageError> {
        let (Some(directory), Some(name)) = (to.parent().filter(|_| to.is_absolute()), to.file_name()) else {
            return Err(bad_input(to.as_str(), "an absolute path of a file is needed"));
        };
        if exists(to) {
            return Err(bad_input(to.as_str(), "it exists already"));
        }
        let snapshot = self.records.snapshot_manifest(id)?;
        if let Some(disk) = snapshot.own_disks.first() {
            let detail =
                format!("it has the disk `{}`, which was a file of yours and is not exported", disk.serial);
            return Err(bad_input(format!("snapshot {id}"), detail));
        }
        // The snapshot may be removed meanwhile; its layers stay until they are written.
        let _pins: Vec<Pin> =
            snapshot.disk.layers.iter().map(|layer| self.ground.pins.pin(layer_key(&layer.id))).collect();
        self.records.state_parts(&snapshot)?;
        let workspace = self.ground.workspace()?;
        progress.step("collecting the memory");
        let (manifest, memory) = self.whole(snapshot, &workspace, cancel, progress)?;
        let base = workspace.join("base");
        let base_part = self.pack_base(&manifest, &base, cancel)?;
        let manifest = ExportManifest { snapshot: manifest, base: base_part };
        let of = |name: &str, path, part| Piece { name: name.to_owned(), path, part };
        let snapshot = &manifest.snapshot;
        let home = self.ground.snapshot_path(id);
        let state = snapshot.state();
        let mut pieces: Vec<Piece<'_>> =
            state.map(|state| of(&state.label(), home.join(state.file_name()), state.part)).collect();
        pieces.push(of("memory", memory, &snapshot.memory.file));
        pieces.push(of("disk/base", base, &manifest.base));
        for layer in &snapshot.disk.layers {
            pieces.push(of(&format!("disk/{}", layer.id), self.ground.layer_path(&layer.id), &layer.file));
        }

        // Beside the target, so that a rename is enough, and under a name of its own, so that two exports do not
        // meet.
        let number = self.ground.number();
        let unfinished = Unfinished(directory.join(format!(".{name}.{}-{number}.part", std::process::id())));
        let path = &unfinished.0;
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)
            .map_err(io_error("creating", path))?;
        file.write_all(MAGIC)
            .and_then(|()| file.write_all(&version_of(snapshot).to_le_bytes()))
            .map_err(io_error("writing", path))?;
        let total: u64 = pieces.iter().map(|piece| piece.part.length).sum();
        write_stream(&file, &manifest, &pieces, &|done| {
            cancel.check()?;
            progress.advance("exporting", done, Some(total));
            Ok(())
        })
        .map_err(|error| error.into_error(id, path))?;
        file.sync_all().map_err(io_error("syncing", path))?;
        let length = file.metadata().map_err(io_error("examining", path))?.len();
        cancel.check()?;
        match renameat_with(CWD, path.as_std_path(), CWD, to.as_std_path(), RenameFlags::NOREPLACE) {
            Err(rustix::io::Errno::EXIST) => return Err(bad_input(to.as_str(), "it exists already")),
            other => other.map_err(errno("renaming to", to))?,
        }
        sync_directory(directory)?;
        Ok(length)
    }

    /// The snapshot without a parent, and the file of its packed memory.
    fn whole(
        &self,
        mut snapshot: SnapshotManifest,
        workspace: &Workspace,
        cancel: &Cancel,
        progress: &Progress,
    ) -> Result<(SnapshotManifest, Utf8PathBuf), StorageError> {
        // Only what is durable: a materialised base has no checksum.
        let view = self.memories.open_memory(&snapshot, Bases::Ignore, cancel)?;
        if snapshot.parent.is_none() {
            let path = self.ground.snapshot_path(&snapshot.id).join(MEMORY);
            return Ok((snapshot, path));
        }
        let runs = difference(&view, None, cancel)?;
        let path = workspace.join("memory");
        let file = write_pages(&path, &view, &runs, cancel, progress)?;
        snapshot.parent = None;
        snapshot.memory = MemoryPart { file, content_bytes: content_pages(&runs) * PAGE, depth: 0 };
        Ok((snapshot, path))
    }

    /// Packs the empty disk.
    fn pack_base(
        &self,
        snapshot: &SnapshotManifest,
        to: &Utf8Path,
        cancel: &Cancel,
    ) -> Result<Part, StorageError> {
        let path = self.ground.directories.scratch_base.join(&snapshot.disk.base);
        if self.scratch.verify_scratch_base(&path)? != snapshot.disk.base_sha256 {
            let detail = format!("{path} is another than the snapshot was taken over");
            return Err(damage("disk/base", detail).of(&snapshot.id));
        }
        let file = File::open(&path).map_err(io_error("opening", &path))?;
        let base = BaseFile { file, name: snapshot.disk.base.clone(), path };
        let pages = (u64::from(snapshot.disk.disk_mib) << 20) / PAGE;
        let view = View { pages, base: Some(base), overlays: Vec::new() };
        let runs = difference(&view, None, cancel)?;
        write_pages(to, &view, &runs, cancel, &Progress::ignored())
    }
}

/// Reason for which the stream could not be written.
enum StreamError {
    Output(std::io::Error),
    Storage(StorageError),
    Damaged(microvm_ports::snapshot::Damage),
}

impl StreamError {
    fn into_error(self, id: &SnapshotId, path: &Utf8Path) -> StorageError {
        match self {
            Self::Output(error) => io_error("writing", path)(error),
            Self::Storage(error) => error,
            Self::Damaged(damage) => damage.of(id),
        }
    }
}

/// Writes manifest and parts; each part is verified while it is read.
fn write_stream(
    file: &File,
    manifest: &ExportManifest,
    pieces: &[Piece<'_>],
    step: &dyn Fn(u64) -> Result<(), StorageError>,
) -> Result<(), StreamError> {
    let mut encoder = zstd::stream::write::Encoder::new(file, LEVEL).map_err(StreamError::Output)?;
    encoder.include_checksum(true).map_err(StreamError::Output)?;
    let bytes = microvm_durable::manifest::encode(manifest);
    let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
    encoder
        .write_all(&length.to_le_bytes())
        .and_then(|()| encoder.write_all(&bytes))
        .map_err(StreamError::Output)?;
    let mut buffer = vec![0; 1 << 18];
    let mut done = 0;
    for piece in pieces {
        let failed = |error| StreamError::Storage(io_error("reading", &piece.path)(error));
        let mut source = File::open(&piece.path).map_err(failed)?;
        let mut hasher = PartHasher::new(piece.part.length);
        loop {
            step(done).map_err(StreamError::Storage)?;
            let count = source.read(&mut buffer).map_err(failed)?;
            if count == 0 {
                break;
            }
            hasher.update(&buffer[..count]);
            encoder.write_all(&buffer[..count]).map_err(StreamError::Output)?;
            done += count as u64;
        }
        if let Some(damage) = piece.part.damage(&piece.name, &hasher.finish()) {
            return Err(StreamError::Damaged(damage));
        }
    }
    encoder.finish().map(|_| ()).map_err(StreamError::Output)
}
