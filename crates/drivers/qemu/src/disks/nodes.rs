//! Disks as QEMU's block layer sees them: a format node over a file node, layers below, names of ours.

use microvm_ports::hypervisor::MachineDisk;
use microvm_ports::storage::DiskFormat;
use serde_json::{Value, json};

/// A node of `format` on the file that the VMM knows as `file`, over `backing` (null: nothing).
pub(crate) fn node(format: DiskFormat, file: &str, read_only: bool, backing: Value) -> Value {
    // No locks: layers are read by many machines at once, and who may write what is decided before QEMU starts.
    let file = json!({ "driver": "file", "filename": file, "locking": "off", "read-only": read_only });
    match format {
        DiskFormat::Raw => json!({ "driver": "raw", "read-only": read_only, "file": file }),
        // `backing` is always said, so that what the header names is never opened.
        DiskFormat::Qcow2 => json!({
            "driver": "qcow2", "read-only": read_only, "discard": "unmap", "file": file, "backing": backing
        }),
    }
}

/// Read-only layers below the disk `index`, nearest first: qcow2 layers over one raw file.
pub(crate) fn chain(index: usize, files: &[String]) -> Value {
    files.iter().enumerate().rev().fold(Value::Null, |backing, (depth, file)| {
        if depth + 1 < files.len() {
            return node(DiskFormat::Qcow2, file, true, backing);
        }
        let mut lowest = node(DiskFormat::Raw, file, true, backing);
        lowest["node-name"] = json!(lowest_node(index));
        lowest
    })
}

/// A whole disk, named: the VMM knows its overlay as `file`, the layers below it as `below`.
pub(crate) fn tree(index: usize, disk: &MachineDisk, file: &str, below: &[String]) -> Value {
    let mut overlay = node(disk.format, file, disk.read_only, chain(index, below));
    if disk.serial == SCRATCH {
        without_flush(&mut overlay);
    }
    overlay["node-name"] = json!(first_node(index));
    overlay
}

/// Size of a disk as a guest sees it, in bytes; 0 for a block device, whose end no write gets beyond.
pub(crate) fn size_of(disk: &MachineDisk) -> std::io::Result<u64> {
    let file = std::fs::File::open(&disk.path)?;
    match disk.format {
        DiskFormat::Raw => Ok(file.metadata()?.len()),
        DiskFormat::Qcow2 => {
            // Offset of the size in a qcow2 header (docs/interop/qcow2.txt of QEMU).
            let mut size = [0; 8];
            std::os::unix::fs::FileExt::read_exact_at(&file, &mut size, 24)?;
            Ok(u64::from_be_bytes(size))
        }
    }
}

/// Name of the node that a device has until its disk is handed over.
pub(crate) fn later_node(index: usize) -> String {
    format!("disk{index}-later")
}

/// Placeholder of a disk that is handed over later. A guest never sees it.
pub(crate) fn placeholder(index: usize) -> Value {
    json!({ "driver": "null-co", "size": 1 << 20, "node-name": later_node(index) })
}

/// Name of the lowest node of a disk's chain, which stays when all between it and the overlay goes.
pub(crate) fn lowest_node(index: usize) -> String {
    format!("disk{index}-lowest")
}

/// Number of overlays that a disk had before the one called `name`.
pub(crate) fn number_of(name: &str) -> u64 {
    name.split_once('.').and_then(|(_, number)| number.parse().ok()).unwrap_or(0)
}

/// Serial number of the disk that is removed with its VM. Every other one belongs to the user, or is a copy of such a disk.
pub(crate) const SCRATCH: &str = "scratch";

/// Has flushes of the guest reach the host's page cache and no further (docs/design/0007): the disk survives every crash
/// but that of the host, which no VM survives.
pub(crate) fn without_flush(node: &mut Value) {
    let cache = json!({ "no-flush": true });
    node["file"]["cache"] = cache.clone();
    node["cache"] = cache;
}

/// Name of a disk's device, and of its uppermost node when the machine starts.
pub(crate) fn first_node(index: usize) -> String {
    format!("disk{index}")
}

/// Name of the overlay node after the one called `current`.
pub(crate) fn next_node(current: &str) -> String {
    let disk = current.split('.').next().unwrap_or(current);
    format!("{disk}.{}", number_of(current).saturating_add(1))
}

/// Index of the disk whose device or node is called `name`.
pub(crate) fn index_of(name: &str) -> Option<usize> {
    name.strip_prefix("disk")?.split('.').next()?.parse().ok()
}

/// File systems that read and write a file through the host's page cache unless they are asked not to (linux/magic.h):
/// ext4, xfs, btrfs, f2fs, tmpfs, overlayfs, NFS, and of those outside of Linux ZFS.
const BUFFERED: [i64; 8] =
    [0xEF53, 0x5846_5342, 0x9123_683E, 0xF2F5_2010, 0x0102_1994, 0x794C_7630, 0x6969, 0x2FC1_2FC1];

/// True if all of a disk lies on file systems whose reads the kernel copies into the guest's memory, where they are noted as
/// any program's writes. With others (FUSE, 9P and SMB, depending on their options) a device may write there unnoticed.
pub(crate) fn is_buffered(disk: &MachineDisk) -> bool {
    std::iter::once(&disk.path).chain(&disk.backing).all(|path| {
        rustix::fs::statfs(path.as_std_path()).is_ok_and(|found| BUFFERED.contains(&found.f_type))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_is_buffered_if_all_of_it_is_known_to_be() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let here = camino::Utf8Path::from_path(file.path()).unwrap();
        let disk = |path: &camino::Utf8Path, backing: &[&str]| MachineDisk {
            path: path.to_owned(),
            format: DiskFormat::Raw,
            backing: backing.iter().map(Into::into).collect(),
            read_only: false,
            serial: "data".to_owned(),
        };
        assert!(is_buffered(&disk(here, &[here.as_str()])));
        // The process file system stands for all that are not known.
        assert!(!is_buffered(&disk(here, &["/proc/version"])));
        assert!(!is_buffered(&disk("/proc/version".into(), &[])));
        assert!(!is_buffered(&disk("/nonexistent".into(), &[])));
    }

    #[test]
    fn names_count_up() {
        assert_eq!(next_node(&first_node(1)), "disk1.1");
        assert_eq!(next_node("disk1.9"), "disk1.10");
        assert_eq!(index_of("disk12.3"), Some(12));
        assert_eq!(index_of("image"), None);
        assert_eq!((index_of(&lowest_node(1)), index_of(&later_node(1))), (None, None));
    }
}
