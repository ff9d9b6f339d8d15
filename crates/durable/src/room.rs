//! The room that VMs and what is kept of them have: the file system's, and no more than a limit for all of them together.
//!
//! What is being written counts from the moment it is begun, with all that it may take: a hundred pieces that are asked for
//! at once each fit by themselves, and the limit is for their sum.

use std::collections::HashSet;
use std::os::unix::fs::MetadataExt as _;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use camino::{Utf8Path, Utf8PathBuf};
use microvm_ports::StorageError;
use microvm_ports::storage::Space;
use microvm_types::ByteSize;

use super::error::errno;
use super::files::{require_room, require_space};

/// Age at which the count of held bytes is renewed: a hundred children of one fork ask at once.
const KNOWN_FOR: Duration = Duration::from_millis(500);

/// Disk space of some directories together, against a limit.
pub struct Room {
    /// Directories that count; work in progress counts by its promises.
    counted: Vec<Utf8PathBuf>,
    /// Bytes; `None`: what the file system has.
    limit: Option<u64>,
    held: Mutex<Held>,
}

#[derive(Default)]
struct Held {
    /// When it was counted, and the bytes that were found then, with what was written since.
    counted: Option<(Instant, u64)>,
    /// Bytes of all that is being written.
    promised: u64,
}

/// Room for something that is being written; to be kept until it has its place.
#[must_use = "the room is free again when this is dropped"]
pub struct Promise<'a> {
    room: &'a Room,
    bytes: u64,
}

impl Drop for Promise<'_> {
    fn drop(&mut self) {
        let mut held = self.room.lock();
        held.promised = held.promised.saturating_sub(self.bytes);
        // It has been written, or else the next count says so.
        if let Some((_, counted)) = &mut held.counted {
            *counted = counted.saturating_add(self.bytes);
        }
    }
}

impl Room {
    /// Room of which `counted` directories take; `limit`: bytes that they may take together, `None`: what the file
    /// system has.
    #[must_use]
    pub fn new(counted: Vec<Utf8PathBuf>, limit: Option<u64>) -> Self {
        Self { counted, limit, held: Mutex::default() }
    }

    /// Bytes that VMs can still take, and all bytes of the file system or of the limit.
    pub fn space(&self, path: &Utf8Path) -> Result<Space, StorageError> {
        let state =
            rustix::fs::statvfs(path.as_std_path()).map_err(errno("asking for the free space of", path))?;
        let bytes = |blocks: u64| blocks.saturating_mul(state.f_frsize);
        let (free, total) = (bytes(state.f_bavail), bytes(state.f_blocks));
        Ok(match self.limit {
            None => Space { free, total },
            Some(limit) => {
                let held = self.held(&mut self.lock());
                Space { free: free.min(limit.saturating_sub(held)), total: total.min(limit) }
            }
        })
    }

    /// Refuses what all VMs together may not take, and early what the file system cannot hold: there writing may still
    /// fail.
    pub fn require(&self, path: &Utf8Path, needed: u64, action: &str) -> Result<Promise<'_>, StorageError> {
        let promise = self.promise(needed, action)?;
        require_space(path, needed, action)?;
        Ok(promise)
    }

    /// Like [`Self::require`], for content from elsewhere: it leaves a reserve of the file system.
    pub fn require_foreign(
        &self,
        path: &Utf8Path,
        needed: u64,
        action: &str,
    ) -> Result<Promise<'_>, StorageError> {
        let promise = self.promise(needed, action)?;
        require_room(path, needed, action)?;
        Ok(promise)
    }

    fn promise(&self, needed: u64, action: &str) -> Result<Promise<'_>, StorageError> {
        let Some(limit) = self.limit else { return Ok(Promise { room: self, bytes: 0 }) };
        let mut known = self.lock();
        let held = self.held(&mut known);
        if held.saturating_add(needed) > limit {
            return Err(StorageError::OverDiskLimit {
                action: action.to_owned(),
                needed: ByteSize(needed).to_string(),
                held: ByteSize(held).to_string(),
                limit: ByteSize(limit).to_string(),
            });
        }
        known.promised = known.promised.saturating_add(needed);
        Ok(Promise { room: self, bytes: needed })
    }

    fn lock(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes on the disk (blocks, not lengths), and those that are promised. A file with several names counts once; blocks
    /// that files share count for each of them.
    fn held(&self, known: &mut Held) -> u64 {
        let counted = match known.counted {
            Some((when, counted)) if when.elapsed() < KNOWN_FOR => counted,
            _ => {
                let mut seen = HashSet::new();
                let counted = self.counted.iter().map(|path| usage(path, &mut seen)).sum();
                known.counted = Some((Instant::now(), counted));
                counted
            }
        };
        counted.saturating_add(known.promised)
    }
}

/// Bytes of a file or a tree on disk. A file that vanishes meanwhile counts as empty.
fn usage(path: &Utf8Path, seen: &mut HashSet<(u64, u64)>) -> u64 {
    let Ok(found) = path.symlink_metadata() else { return 0 };
    if found.is_dir() {
        let below = path.read_dir_utf8().into_iter().flatten().flatten();
        let below: u64 = below.map(|entry| usage(entry.path(), seen)).sum();
        return found.blocks() * 512 + below;
    }
    if found.nlink() > 1 && !seen.insert((found.dev(), found.ino())) {
        return 0;
    }
    found.blocks() * 512
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    struct Directories {
        vms: Utf8PathBuf,
        memory: Utf8PathBuf,
        layers: Utf8PathBuf,
        snapshots: Utf8PathBuf,
        images: Utf8PathBuf,
    }

    fn room(limit: Option<u64>) -> (tempfile::TempDir, Directories, Room) {
        let folder = tempfile::tempdir().unwrap();
        let made = |name: &str| {
            let path = Utf8Path::from_path(folder.path()).unwrap().join(name);
            std::fs::create_dir(&path).unwrap();
            path
        };
        let directories = Directories {
            vms: made("vms"),
            memory: made("memory"),
            layers: made("layers"),
            snapshots: made("snapshots"),
            images: made("images"),
        };
        let Directories { vms, memory, snapshots, layers, .. } = &directories;
        let room = Room::new([vms, memory, snapshots, layers].map(Clone::clone).into(), limit);
        (folder, directories, room)
    }

    #[test]
    fn what_is_held_counts_once_and_against_the_limit() {
        let (_folder, directories, room) = room(Some(8 * MIB));
        let file = directories.vms.join("top");
        std::fs::write(&file, vec![1; 3 << 20]).unwrap();
        std::fs::hard_link(&file, directories.layers.join("layer")).unwrap();
        std::fs::write(directories.images.join("image"), vec![1; 1 << 20]).unwrap();
        // A hole takes nothing.
        std::fs::File::create(directories.vms.join("sparse")).unwrap().set_len(1 << 40).unwrap();
        let held = room.held(&mut room.lock());
        assert!((3 * MIB..4 * MIB).contains(&held), "{held}");
        let fits = room.require(&directories.vms, 4 * MIB, "creating the VM").unwrap();
        drop(fits);
        room.lock().counted = None;
        let error = room.require(&directories.vms, 6 * MIB, "creating the VM").err().unwrap();
        assert!(matches!(error, StorageError::OverDiskLimit { .. }), "{error:?}");
        let text = error.to_string();
        assert!(
            ["creating the VM", "8MiB", "6MiB", "delete"].iter().all(|part| text.contains(part)),
            "{text}"
        );
        assert!(room.require_foreign(&directories.snapshots, 6 * MIB, "importing the snapshot").is_err());
        let space = room.space(&directories.vms).unwrap();
        assert_eq!(space, Space { free: 8 * MIB - held, total: 8 * MIB });
    }

    #[test]
    fn pieces_that_are_written_at_once_count_together() {
        let (_folder, directories, room) = room(Some(8 * MIB));
        let first = room.require(&directories.snapshots, 3 * MIB, "writing the snapshot").unwrap();
        let second = room.require_foreign(&directories.snapshots, 3 * MIB, "importing").unwrap();
        let third = || room.require(&directories.memory, 3 * MIB, "writing the memory").is_err();
        assert!(third(), "each fits by itself, and not all three");
        assert!(room.space(&directories.vms).unwrap().free < 2 * MIB + 1);
        // What has been written counts from then on, although it was not counted since.
        std::fs::write(directories.snapshots.join("written"), vec![1; 3 << 20]).unwrap();
        drop(first);
        assert!(third(), "the first is written");
        // What was given up is free again at the next count.
        drop(second);
        room.lock().counted = None;
        assert!(!third(), "the second was given up");
    }

    #[test]
    fn without_a_limit_there_is_what_the_disk_has() {
        let (_folder, directories, room) = room(None);
        drop(room.require(&directories.vms, MIB, "creating the VM").unwrap());
        let space = room.space(&directories.vms).unwrap();
        assert!(space.total > 8 * MIB && space.free <= space.total);
        let error = room.require(&directories.vms, u64::MAX / 2, "creating the VM").err().unwrap();
        assert!(matches!(error, StorageError::DiskFull { .. }), "{error:?}");
    }
}
