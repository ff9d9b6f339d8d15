//! Scratch disks: an empty ext4 formatted once per size, and one small overlay per VM.

use std::collections::HashMap;
use std::fs::OpenOptions;
use std::sync::{Arc, Mutex};

use camino::{Utf8Path, Utf8PathBuf};
use microvm_durable::cancel::Cancel;
use microvm_durable::error::{bad_input, damaged, io_error};
use microvm_durable::files::{exists, rename_durably};
use microvm_durable::stamp::Stamp;
use microvm_durable::tool::Tool;
use microvm_durable::workspace::Workspace;
use microvm_ports::StorageError;

use crate::ground::Ground;

pub(crate) const MKE2FS: Tool = Tool { program: "mke2fs", package: "e2fsprogs", purpose: "formatting disks" };

/// Smallest scratch disk that holds an ext4 with a journal.
pub(crate) const DISK_MIN_MIB: u32 = 16;
/// Largest: 16 TiB, the end of ext4 with 4 KiB blocks and 32-bit block numbers.
pub(crate) const DISK_MAX_MIB: u32 = 16 << 20;

/// Empty disks that scratch overlays lie over, one for each size.
#[derive(Clone)]
pub(crate) struct ScratchBases {
    ground: Arc<Ground>,
    /// Those verified so far.
    known: Arc<Mutex<HashMap<Utf8PathBuf, Stamp>>>,
}

impl ScratchBases {
    /// Those of a store.
    pub(crate) fn new(ground: Arc<Ground>) -> Self {
        Self { ground, known: Arc::default() }
    }

    /// The empty ext4 of so many MiB, formatted at its first use.
    pub(crate) fn scratch_base(&self, disk_mib: u32, cancel: &Cancel) -> Result<Utf8PathBuf, StorageError> {
        if !(DISK_MIN_MIB..=DISK_MAX_MIB).contains(&disk_mib) {
            return Err(bad_input(
                "the disk",
                format!("{disk_mib} MiB were asked for; {DISK_MIN_MIB} to {DISK_MAX_MIB} are possible"),
            ));
        }
        let path = self.ground.directories.scratch_base.join(format!("ext4-{disk_mib}-v1.raw"));
        if exists(&path) {
            let length = path.metadata().map_err(io_error("examining", &path))?.len();
            if length != u64::from(disk_mib) << 20 {
                return Err(damaged(
                    format!("the empty scratch disk {path}"),
                    format!("it should have {disk_mib} MiB, but has {length} bytes"),
                ));
            }
            // Every VM of this size depends on it: what was written is verified by the same rules as an image.
            self.verify_scratch_base(&path)?;
            return Ok(path);
        }
        let workspace = self.ground.workspace()?;
        format(&workspace, disk_mib, cancel)?;
        let new = workspace.join("disk.raw");
        let sums = workspace.join("sums");
        let header = header_sum(&new)?;
        microvm_durable::manifest::write(&sums, &header)?;
        // The sums first: a disk that is there can be verified.
        microvm_durable::files::rename_durably(&sums, &sums_of(&path))?;
        rename_durably(&new, &path)?;
        Ok(path)
    }

    /// Verifies an empty disk; returns the SHA-256 over its data.
    pub(crate) fn verify_scratch_base(&self, path: &Utf8Path) -> Result<String, StorageError> {
        let what = format!("the empty scratch disk {path}");
        let sums: Sums = microvm_durable::manifest::read(&sums_of(path), &what)?;
        let stamp = Stamp::of(path)?;
        let mut known = self.known.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if known.get(path) == Some(&stamp) {
            return Ok(sums.sha256);
        }
        let found = header_sum(path)?;
        if found != sums {
            return Err(damaged(
                what,
                format!("its SHA-256 should be {}, but is {}", sums.sha256, found.sha256),
            ));
        }
        known.insert(path.to_owned(), stamp);
        Ok(sums.sha256)
    }
}

/// SHA-256 over the parts of a sparse file that hold data, with their places: hashing 10 GiB of holes would take seconds.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Sums {
    pub(crate) length: u64,
    pub(crate) sha256: String,
}

pub(crate) fn sums_of(path: &Utf8Path) -> Utf8PathBuf {
    path.with_extension("json")
}

/// Blocks that are all zero count as holes, so that copying the file with or without its holes gives the same sum.
pub(crate) fn header_sum(path: &Utf8Path) -> Result<Sums, StorageError> {
    use rustix::fs::{SeekFrom, seek};
    use sha2::{Digest, Sha256};
    use std::os::unix::fs::FileExt;
    const PIECE: u64 = 4096;
    let file = std::fs::File::open(path).map_err(io_error("opening", path))?;
    let length = file.metadata().map_err(io_error("examining", path))?.len();
    let mut hasher = Sha256::new();
    let mut at = 0;
    let mut piece = [0; 4096];
    loop {
        let data = match seek(&file, SeekFrom::Data(at)) {
            Ok(data) => data,
            // Nothing but a hole follows.
            Err(rustix::io::Errno::NXIO) => break,
            Err(error) => return Err(microvm_durable::error::errno("reading", path)(error)),
        };
        let end =
            seek(&file, SeekFrom::Hole(data)).map_err(microvm_durable::error::errno("reading", path))?;
        let mut place = data / PIECE * PIECE;
        while place < end {
            let count = usize::try_from((length - place).min(PIECE)).unwrap_or(0);
            file.read_exact_at(&mut piece[..count], place).map_err(io_error("reading", path))?;
            if piece[..count].iter().any(|byte| *byte != 0) {
                hasher.update(place.to_le_bytes());
                hasher.update(&piece[..count]);
            }
            place += PIECE;
        }
        at = end;
    }
    Ok(Sums { length, sha256: microvm_durable::files::hex(&hasher.finalize()) })
}

/// Formats `disk.raw` in the workspace.
fn format(workspace: &Workspace, disk_mib: u32, cancel: &Cancel) -> Result<(), StorageError> {
    let path = workspace.join("disk.raw");
    let file =
        OpenOptions::new().write(true).create_new(true).open(&path).map_err(io_error("creating", &path))?;
    file.set_len(u64::from(disk_mib) << 20).map_err(io_error("resizing", &path))?;
    let mut command = MKE2FS.command()?;
    command
        .args(["-q", "-F", "-t", "ext4", "-b", "4096", "-m", "0", "-I", "256", "-L", "scratch"])
        // No checksums of metadata: CRC-32C in software costs more under emulation than the disk below can go wrong, which
        // lives no longer than its VM. 64-bit block numbers are not needed up to 16 TiB and would double the descriptors.
        .args(["-O", "^metadata_csum,^64bit,^resize_inode,extent,flex_bg,sparse_super2"])
        // Tables and journal are holes of a fresh file, zero already: neither now nor in the guest need they be written.
        .args(["-E", "lazy_itable_init=1,lazy_journal_init=1,nodiscard,root_owner=0:0,packed_meta_blocks=1,assume_storage_prezeroed=1"])
        .args(["-J", if disk_mib < 128 { "size=4" } else { "size=16" }])
        // Same input, same bytes: the identity of an empty scratch disk means nothing.
        .args(["-U", "6d6f7669-7672-4d00-8000-736372617463"])
        .arg(path.as_str())
        .env("E2FSPROGS_FAKE_TIME", "1");
    MKE2FS.run(command, cancel, |_| {})?;
    file.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(0o444))
        .map_err(io_error("setting the mode of", &path))?;
    file.sync_all().map_err(io_error("syncing", &path))
}
