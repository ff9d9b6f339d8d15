//! Place of the guest's memory in the QEMU process.

use std::io;
use std::os::unix::fs::MetadataExt as _;

use camino::Utf8Path;
use microvm_confinement::ProcessIdentity;
use nix::sys::stat::{major, minor};
use serde::{Deserialize, Serialize};

/// The base file of a machine's memory, as it is recognised among all mappings of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct MemoryFile {
    inode: u64,
    /// Major and minor number as `/proc/<pid>/maps` tells them; records of older versions have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    device: Option<(u64, u64)>,
    /// Bytes of memory.
    pub(crate) bytes: u64,
}

impl MemoryFile {
    pub(crate) fn of(path: &Utf8Path, memory_mib: u32) -> io::Result<Self> {
        let (found, bytes) = (path.metadata()?, u64::from(memory_mib) << 20);
        if found.len() == bytes {
            let device = match (major(found.dev()), minor(found.dev())) {
                // A device without hardware: some file systems (btrfs, overlayfs) tell `stat` another one.
                (0, _) => mapped_device(path)?,
                device => device,
            };
            Ok(Self { inode: found.ino(), device: Some(device), bytes })
        } else {
            let there = found.len() >> 20;
            Err(io::Error::other(format!("it holds {there} MiB, the machine has {memory_mib} MiB of memory")))
        }
    }
}

/// Memory of a guest in the address space of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Mapping {
    /// Process whose memory it is.
    pub(crate) process: ProcessIdentity,
    /// Address of the first byte.
    pub(crate) start: u64,
    /// Bytes.
    pub(crate) length: u64,
}

impl Mapping {
    /// Finds the mapping of `file` in a process.
    ///
    /// # Errors
    /// If the process cannot be looked at, has ended, or does not map the whole file privately and in one piece.
    pub(crate) fn find(process: ProcessIdentity, file: MemoryFile) -> io::Result<Self> {
        let maps = std::fs::read_to_string(format!("/proc/{}/maps", process.pid))?;
        let found = find_in(&maps, file)
            .map(|(start, end)| Self { process, start, length: end - start })
            .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "its memory is not mapped as expected"))?;
        // After the look at its maps: a process number that changed hands meanwhile is noticed.
        found.check_process()?;
        Ok(found)
    }

    /// Fails if the process has ended: its number may be that of another one since, with the same base of its memory, and
    /// what was read by it is that one's.
    pub(crate) fn check_process(&self) -> io::Result<()> {
        if self.process.lives()? {
            return Ok(());
        }
        Err(io::Error::new(io::ErrorKind::NotFound, "its process has ended"))
    }
}

/// This process.
#[cfg(test)]
pub(super) fn this_process() -> ProcessIdentity {
    ProcessIdentity::of(i32::try_from(std::process::id()).unwrap()).unwrap()
}

/// The device that mappings of a file are told with, seen in one of our own.
#[allow(unsafe_code)]
fn mapped_device(path: &Utf8Path) -> io::Result<(u64, u64)> {
    let file = std::fs::File::open(path)?;
    // SAFETY: nothing of the mapping is read.
    // Needed: `memmap2` makes every mapping of a file unsafe, and the kernel tells the device of mappings only.
    let map = unsafe { memmap2::MmapOptions::new().len(1).map_copy_read_only(&file) }?;
    let start = format!("{:x}-", map.as_ptr().expose_provenance());
    let maps = std::fs::read_to_string("/proc/self/maps")?;
    let line = maps.lines().find_map(|line| line.strip_prefix(&start));
    line.and_then(|line| device(line.split_ascii_whitespace().nth(3)?))
        .ok_or_else(|| io::Error::other("its device cannot be told"))
}

fn device(field: &str) -> Option<(u64, u64)> {
    let (major, minor) = field.split_once(':')?;
    Some((u64::from_str_radix(major, 16).ok()?, u64::from_str_radix(minor, 16).ok()?))
}

/// A line of proc(5) maps: `start-end perms offset device inode path`. The kernel splits a mapping where parts of it got
/// different advice; parts in a row are taken together.
fn find_in(maps: &str, file: MemoryFile) -> Option<(u64, u64)> {
    let mut found: Option<(u64, u64)> = None;
    for line in maps.lines() {
        let mut fields = line.split_ascii_whitespace();
        let (range, permissions) = (fields.next()?, fields.next()?);
        let (on, inode) = (device(fields.nth(1)?)?, fields.next()?);
        let another = inode.parse() != Ok(file.inode) || file.device.is_some_and(|known| known != on);
        if another || !permissions.ends_with('p') {
            continue;
        }
        let (start, end) = range.split_once('-')?;
        let (start, end) = (u64::from_str_radix(start, 16).ok()?, u64::from_str_radix(end, 16).ok()?);
        found = match found {
            None => Some((start, end)),
            Some((first, last)) if last == start => Some((first, end)),
            Some(_) => return None,
        };
    }
    found.filter(|(start, end)| end - start == file.bytes)
}

#[cfg(test)]
#[allow(unsafe_code, reason = "mappings")]
mod tests {
    use super::*;

    const FILE: MemoryFile = MemoryFile { inode: 77, device: Some((0xfe, 0)), bytes: 0x3000 };

    #[test]
    fn parts_in_a_row_are_one_mapping() {
        let maps = "\
55d0-55d1 r-xp 00000000 fe:00 12 /usr/bin/qemu
1000-2000 rw-p 00000000 fe:00 77 /memory (deleted)
2000-4000 rw-p 00001000 fe:00 77 /memory (deleted)
7000-8000 rw-p 00000000 00:00 0 [heap]
";
        assert_eq!(find_in(maps, FILE), Some((0x1000, 0x4000)));
    }

    #[test]
    fn a_file_with_its_number_on_another_disk_is_not_its_memory() {
        let maps = "1000-4000 rw-p 00000000 fe:01 77 /disk-1\n5000-8000 rw-p 00000000 fe:00 77 /memory\n";
        assert_eq!(find_in(maps, FILE), Some((0x5000, 0x8000)));
        // As a record of an older version has it, which is good enough where there is one.
        assert_eq!(find_in(maps, MemoryFile { device: None, ..FILE }), None);
        assert_eq!(
            find_in(maps.lines().next().unwrap(), MemoryFile { device: None, ..FILE }),
            Some((0x1000, 0x4000))
        );
        let old: MemoryFile = serde_json::from_str(r#"{"inode":77,"bytes":12288}"#).unwrap();
        assert_eq!(old, MemoryFile { device: None, ..FILE });
    }

    #[test]
    fn the_device_is_that_of_mappings_on_every_file_system() {
        for folder in ["/dev/shm", "/tmp", "/var/tmp"] {
            let Ok(file) = tempfile::NamedTempFile::new_in(folder) else { continue };
            file.as_file().set_len(1 << 20).unwrap();
            let path = Utf8Path::from_path(file.path()).unwrap();
            let known = MemoryFile::of(path, 1).unwrap();
            // SAFETY: nobody else knows the file.
            let map = unsafe { memmap2::MmapOptions::new().map_copy(file.as_file()) }.unwrap();
            let me = this_process();
            let found = Mapping::find(me, known).unwrap();
            assert_eq!(found.start, map.as_ptr() as u64);
            // The number alone does not do: it may be another process's by now.
            let ended = ProcessIdentity { start_ticks: me.start_ticks + 1, ..me };
            assert!(Mapping::find(ended, known).is_err());
        }
    }

    #[test]
    fn anything_else_is_not_taken_for_memory() {
        for maps in [
            "",
            "nonsense\n",
            "1000-4000 rw-s 00000000 fe:00 77 /memory\n",
            "1000-3000 rw-p 00000000 fe:00 77 /memory\n",
            "1000-2000 rw-p 0 fe:00 77 /memory\n3000-5000 rw-p 1000 fe:00 77 /memory\n",
        ] {
            assert_eq!(find_in(maps, FILE), None, "{maps}");
        }
    }
}
