//! The disk of an imported snapshot: its layers, and the empty disk below them.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};

use camino::{Utf8Path, Utf8PathBuf};
use microvm_durable::error::io_error;
use microvm_durable::files::{exists, remove_all, rename_durably, sync_directory};
use microvm_durable::workspace::Workspace;
use microvm_ports::StorageError;

use super::Exchange;
use super::import::Parts;
use super::manifest::{DiskPart, LayerPart};
use super::page_file::{Content, PAGE, PageFile};
use super::part::{Part, PartHasher, remember};
use crate::ground::{Ground, Pin, layer_key};
use crate::vms::qcow2::Qcow2Header;
use crate::vms::scratch::{header_sum, sums_of};

/// The header of a layer is in its first bytes.
const HEAD: usize = 4096;
/// Offset and length of the name of the file below, which only the host it came from had.
const BACKING: std::ops::Range<usize> = 8..20;

/// Layers in their place without a manifest that names them yet; removed when dropped, unless they are kept.
pub(crate) struct ImportedLayers<'a> {
    ground: &'a Ground,
    layers: Vec<(LayerPart, Pin)>,
    kept: bool,
}

impl<'a> ImportedLayers<'a> {
    /// Reads all layers of the stream.
    pub(crate) fn read(
        ground: &'a Ground,
        parts: &mut Parts<'_>,
        workspace: &Workspace,
        disk: &DiskPart,
    ) -> Result<Self, StorageError> {
        let mut all = Self { ground, layers: Vec::new(), kept: false };
        for (number, layer) in disk.layers.iter().enumerate() {
            let new = workspace.join(&format!("layer-{number}"));
            let name = format!("disk/{number}");
            let part = read_layer(parts, &name, layer, &new, u64::from(disk.disk_mib) << 20)?;
            let id = ground.fresh_id(|id| exists(&ground.layer_path(id)));
            let pin = ground.pins.pin(layer_key(&id));
            let path = ground.layer_path(&id);
            std::fs::rename(&new, &path).map_err(io_error("renaming to", &path))?;
            remember(&path, &part, &ground.layer_sums(&id));
            all.layers.push((LayerPart { id, file: part }, pin));
        }
        sync_directory(&ground.directories.layers)?;
        Ok(all)
    }

    /// Their parts as the manifest names them.
    pub(crate) fn parts(&self) -> Vec<LayerPart> {
        self.layers.iter().map(|(layer, _)| layer.clone()).collect()
    }

    /// A manifest names them now.
    pub(crate) fn keep(mut self) {
        self.kept = true;
    }
}

impl Drop for ImportedLayers<'_> {
    fn drop(&mut self) {
        if self.kept {
            return;
        }
        for (layer, _) in &self.layers {
            for path in [self.ground.layer_path(&layer.id), self.ground.layer_sums(&layer.id)] {
                if let Err(error) = remove_all(&path) {
                    tracing::warn!(%error, "the collector removes it later");
                }
            }
        }
    }
}

/// Reads one layer to a new file. It must be a qcow2 file of the right size that names no other file; what names the
/// disk of the host it came from is taken out.
fn read_layer(
    parts: &mut Parts<'_>,
    name: &str,
    layer: &LayerPart,
    path: &Utf8Path,
    disk_bytes: u64,
) -> Result<Part, StorageError> {
    let file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o444)
        .open(path)
        .map_err(io_error("creating", path))?;
    let length = layer.file.length;
    // Blocks of zeros are not written below: with the length set they are holes.
    file.set_len(length).map_err(io_error("resizing", path))?;
    let mut hasher = PartHasher::new(length);
    let mut at = 0;
    let mut unfit = None;
    parts.part(name, &layer.file, |bytes| {
        if at == 0 {
            let head = bytes.len().min(HEAD);
            if let Some(backing) = bytes.get_mut(BACKING) {
                backing.fill(0);
            }
            unfit = match Qcow2Header::parse(&bytes[..head], length) {
                Ok(header) if header.virtual_size == disk_bytes => None,
                Ok(header) => Some(format!("it is a disk of {} bytes", header.virtual_size)),
                Err(error) => Some(error.to_string()),
            };
        }
        hasher.update(bytes);
        for piece in bytes.chunks(HEAD) {
            if piece.iter().any(|byte| *byte != 0) {
                file.write_all_at(piece, at).map_err(io_error("writing", path))?;
            }
            at += piece.len() as u64;
        }
        Ok(())
    })?;
    if length == 0 {
        unfit = Some("it is empty".to_owned());
    }
    if let Some(unfit) = unfit {
        return Err(parts.wrong(format!("{name} cannot be used: {unfit}")));
    }
    file.sync_all().map_err(io_error("syncing", path))?;
    Ok(hasher.finish())
}

impl Exchange {
    /// Takes in the empty disk below the layers, or finds that the same is there; returns its file name.
    pub(crate) fn import_base(
        &self,
        parts: &mut Parts<'_>,
        workspace: &Workspace,
        disk: &DiskPart,
        base: &Part,
    ) -> Result<String, StorageError> {
        let packed = workspace.join("base.pages");
        parts.part_to("disk/base", base, &packed)?;
        let pages = (u64::from(disk.disk_mib) << 20) / PAGE;
        let packed =
            PageFile::open(&packed, pages)?.map_err(|bad| parts.wrong(format!("disk/base: {}", bad.0)))?;
        let new = workspace.join("base.raw");
        unpack(&packed, &new, pages * PAGE)?;
        let sums = header_sum(&new)?;
        if sums.sha256 != disk.base_sha256 {
            return Err(parts.wrong("disk/base: it is not the disk that its manifest names"));
        }
        // The first is what this host formats itself: mostly it is the very same disk, and nothing has to be kept
        // twice.
        let own = format!("ext4-{}-v1.raw", disk.disk_mib);
        let other = format!("ext4-{}-{}.raw", disk.disk_mib, &sums.sha256[..16]);
        for name in [own, other.clone()] {
            let path = self.ground.directories.scratch_base.join(&name);
            if exists(&path)
                && self.scratch.verify_scratch_base(&path).is_ok_and(|there| there == sums.sha256)
            {
                return Ok(name);
            }
        }
        let path: Utf8PathBuf = self.ground.directories.scratch_base.join(&other);
        let sums_file = workspace.join("base.json");
        microvm_durable::manifest::write(&sums_file, &sums)?;
        // The sums first: a disk that is there is verified by them.
        rename_durably(&sums_file, &sums_of(&path))?;
        rename_durably(&new, &path)?;
        Ok(other)
    }
}

/// Writes packed pages out as a sparse file.
fn unpack(packed: &PageFile, path: &Utf8Path, length: u64) -> Result<(), StorageError> {
    let file: File = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o444)
        .open(path)
        .map_err(io_error("creating", path))?;
    file.set_len(length).map_err(io_error("resizing", path))?;
    let mut buffer = vec![0; super::view::byte(super::difference::CHUNK)];
    for run in &packed.runs {
        let Content::At(start) = run.content else { continue };
        for range in super::difference::chunks(run.range) {
            let buffer = &mut buffer[..super::view::byte(range.count)];
            let at = start + (range.first - run.range.first) * PAGE;
            packed.file.read_exact_at(buffer, at).map_err(io_error("reading", &packed.path))?;
            file.write_all_at(buffer, range.first * PAGE).map_err(io_error("writing", path))?;
        }
    }
    file.sync_all().map_err(io_error("syncing", path))
}
