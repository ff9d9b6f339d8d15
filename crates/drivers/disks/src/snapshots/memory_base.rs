//! Materialised memory bases: whole memories in files that machines are mapped over.
//!
//! They are a cache: written without syncing and without a checksum, good as long as the host runs. Machines do not
//! outlive the host either, so after its next start all of them are removed.

use std::fs::{File, FileTimes, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::time::SystemTime;

use camino::{Utf8Path, Utf8PathBuf};
use microvm_durable::cancel::Cancel;
use microvm_durable::error::{bad_input, damaged, errno, io_error};
use microvm_durable::files::{create_for_vmms, names_in, remove_all, rename_durably};
use microvm_ports::StorageError;
use microvm_ports::branch::PAGE_SIZE;
use microvm_types::SnapshotId;
use rustix::fs::{FlockOperation, flock};

use super::Memories;
use super::difference::{chunks, is_zero};
use super::page_file::PAGE;
use super::view::{BaseFile, Place, View, byte, extents};

const END: &str = ".mem";
const ZERO_START: &str = "zero-";
const BOOT: &str = "boot-id";
const LOCK: &str = ".lock";

/// File name of the base `id`.
pub(crate) fn base_name(id: &str) -> String {
    format!("{id}{END}")
}

/// The id in a base's file name; `None` for zero memory and everything else.
pub(crate) fn base_id(name: &str) -> Option<&str> {
    name.strip_suffix(END).filter(|id| SnapshotId::is_valid(id))
}

/// Largest memory file: 1 TiB.
pub(crate) const MEMORY_MAX_MIB: u32 = 1 << 20;

impl Memories {
    pub(crate) fn zero_memory_file(&self, memory_mib: u32) -> Result<Utf8PathBuf, StorageError> {
        if memory_mib == 0 || memory_mib > MEMORY_MAX_MIB {
            return Err(bad_input(
                "the memory size",
                format!("{memory_mib} MiB were asked for; 1 to {MEMORY_MAX_MIB} are possible"),
            ));
        }
        let path = self.ground.directories.memory.join(format!("zero-{memory_mib}.mem"));
        let length = u64::from(memory_mib) << 20;
        if let Ok(metadata) = path.symlink_metadata() {
            // Without blocks there is nothing but zeros in it: a full verification for the price of a stat.
            if metadata.is_file() && metadata.len() == length && metadata.blocks() == 0 {
                return Ok(path);
            }
            tracing::warn!(%path, "the all-zero memory file was changed; a new one takes its place");
        }
        let workspace = self.ground.workspace()?;
        let new = workspace.join("memory");
        let file = std::fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o644)
            .open(&new)
            .map_err(io_error("creating", &new))?;
        file.set_len(length).map_err(io_error("resizing", &new))?;
        file.sync_all().map_err(io_error("syncing", &new))?;
        rename_durably(&new, &path)?;
        Ok(path)
    }

    /// The file name of a memory base by its path, `None` for zero memory. A path that is not ours is refused.
    pub(crate) fn base_of_path(&self, path: &Utf8Path) -> Result<Option<String>, StorageError> {
        let name = path.file_name().unwrap_or_default();
        if path.parent() != Some(&self.ground.directories.memory) {
            return Err(bad_input("the branch", format!("{path} is not a memory file of this store")));
        }
        if name.starts_with(ZERO_START) && name.ends_with(END) {
            return Ok(None);
        }
        base_id(name)
            .map(|_| Some(name.to_owned()))
            .ok_or_else(|| bad_input("the branch", format!("{path} is not a memory file")))
    }

    /// Opens a base for a memory of `pages` pages; `None` if it is not there.
    pub(crate) fn open_base(&self, name: &str, pages: u64) -> Result<Option<BaseFile>, StorageError> {
        let path = self.ground.directories.memory.join(name);
        let file = match File::open(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            other => other.map_err(io_error("opening", &path))?,
        };
        let length = file.metadata().map_err(io_error("examining", &path))?.len();
        if length != pages * PAGE {
            return Err(damaged(
                format!("the memory file {path}"),
                format!("it should have {} bytes, but has {length}", pages * PAGE),
            ));
        }
        Ok(Some(BaseFile { file, name: name.to_owned(), path }))
    }

    /// Notes that a base is used now; what was not used for longest is removed first.
    pub(crate) fn touch_base(&self, base: &BaseFile) {
        if let Err(error) = base.file.set_times(FileTimes::new().set_modified(SystemTime::now())) {
            tracing::debug!(%error, path = %base.path, "the time of use could not be noted");
        }
    }

    /// Writes a whole memory to a file of its own, sparse and not synced.
    pub(crate) fn materialise(
        &self,
        view: &View,
        name: &str,
        cancel: &Cancel,
    ) -> Result<Utf8PathBuf, StorageError> {
        // For all of it, though holes take nothing: how much they are is known only when it is written.
        let _room = self.ground.room.require(
            &self.ground.directories.memory,
            view.size()?,
            "writing the memory of a machine",
        )?;
        let workspace = self.ground.workspace()?;
        let new = workspace.join("memory");
        let file = create_for_vmms(&new)?;
        if let Some(base) = &view.base {
            copy_base(base, &file, &new, cancel)?;
        }
        file.set_len(view.pages * PAGE).map_err(io_error("resizing", &new))?;
        let mut buffer = vec![0; byte(super::difference::CHUNK)];
        for range in view.covered().into_iter().flat_map(chunks) {
            cancel.check()?;
            view.resolve(range, &mut |range, place| {
                let over_hole = view.base.is_none();
                if place == Place::Base || (place == Place::Zero && over_hole) {
                    return Ok(());
                }
                let buffer = &mut buffer[..byte(range.count)];
                view.read_place(range, place, buffer)?;
                write_run(&file, buffer, range.first, over_hole).map_err(io_error("writing", &new))
            })?;
        }
        cancel.check()?;
        let path = self.ground.directories.memory.join(name);
        std::fs::rename(&new, &path).map_err(io_error("renaming to", &path))?;
        Ok(path)
    }
}

/// Writes pages; over a hole those that are zero are left out.
fn write_run(file: &File, bytes: &[u8], first: u64, over_hole: bool) -> std::io::Result<()> {
    if !over_hole {
        return file.write_all_at(bytes, first * PAGE);
    }
    let mut pages = bytes.chunks(PAGE_SIZE).enumerate().peekable();
    while let Some((begin, page)) = pages.next() {
        if is_zero(page) {
            continue;
        }
        let mut end = begin + 1;
        while pages.next_if(|(_, page)| !is_zero(page)).is_some() {
            end += 1;
        }
        file.write_all_at(&bytes[begin * PAGE_SIZE..end * PAGE_SIZE], (first + begin as u64) * PAGE)?;
    }
    Ok(())
}

/// Shares the blocks of the base where the file system can, else copies its data.
fn copy_base(base: &BaseFile, to: &File, path: &Utf8Path, cancel: &Cancel) -> Result<(), StorageError> {
    if rustix::fs::ioctl_ficlone(to, &base.file).is_ok() {
        return Ok(());
    }
    for range in extents(&base.file, &base.path)? {
        let (mut from, end) = (range.first * PAGE, range.end() * PAGE);
        let mut into = from;
        while from < end {
            cancel.check()?;
            // In steps, so that a cancelled copy ends soon.
            let length = usize::try_from((end - from).min(8 << 20)).unwrap_or(1 << 20);
            let copied =
                rustix::fs::copy_file_range(&base.file, Some(&mut from), to, Some(&mut into), length)
                    .map_err(errno("writing", path))?;
            if copied == 0 {
                return Err(damaged(
                    format!("the memory file {}", base.path),
                    format!("it ends at byte {from}"),
                ));
            }
        }
    }
    Ok(())
}

/// Removes what an earlier start of the host left: it was never synced.
pub(crate) fn forget_earlier_boot(memory: &Utf8Path) -> Result<(), StorageError> {
    // Without a boot id nothing can be told: a wrong guess would take the memory of living machines, and the memory of an
    // earlier boot, which was never synced, would be given to new ones.
    let boot_id = Utf8Path::new("/proc/sys/kernel/random/boot_id");
    let now = std::fs::read_to_string(boot_id).map_err(io_error("reading", boot_id))?;
    let lock_path = memory.join(LOCK);
    let lock = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(&lock_path)
        .map_err(io_error("opening", &lock_path))?;
    // Two stores may open one directory at once: only one of them takes the files of an earlier boot away.
    flock(&lock, FlockOperation::LockExclusive).map_err(errno("locking", &lock_path))?;
    let boot = memory.join(BOOT);
    if std::fs::read_to_string(&boot).is_ok_and(|earlier| earlier == now) {
        return Ok(());
    }
    for name in names_in(memory)?.iter().filter(|name| base_id(name).is_some()) {
        remove_all(&memory.join(name))?;
    }
    let new = memory.join(format!("{BOOT}.new"));
    std::fs::write(&new, now).map_err(io_error("writing", &new))?;
    rename_durably(&new, &boot)
}
