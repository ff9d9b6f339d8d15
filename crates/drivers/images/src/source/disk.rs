//! Disks of virtual machines, told by their first bytes. No file system of them is read here: they are a stranger's.

use std::io::Read as _;

use camino::Utf8Path;
use microvm_durable::error::{bad_input, io_error};
use microvm_ports::StorageError;
use microvm_types::template::DiskFormat;

use super::compression::Compression;
use super::path::open;

/// Bytes that are looked at: all signatures are in them.
const HEAD: u64 = 68 << 10;

/// Signatures of disks whose files a VM can read: their place, and the format.
const READABLE: [(usize, &[u8], DiskFormat); 4] = [
    (0, b"QFI\xfb", DiskFormat::Qcow2),
    (512, b"EFI PART", DiskFormat::Raw),
    (1080, b"\x53\xef", DiskFormat::Raw),
    (510, b"\x55\xaa", DiskFormat::Raw),
];

/// Signatures of all others: their place, what it is, and what to do.
const OTHERS: [(usize, &[u8], &str, &str); 10] = [
    (0, b"KDMV", "a VMDK disk", CONVERT),
    (0, b"vhdxfile", "a VHDX disk", CONVERT),
    (0, b"conectix", "a VHD disk", CONVERT),
    (0, b"<<< ", "a VDI disk", CONVERT),
    (0, b"LUKS\xba\xbe", "encrypted (LUKS)", COPY),
    (512, b"LABELONE", "a volume of LVM", COPY),
    (0, b"XFSB", "an XFS file system", COPY),
    (65_600, b"_BHRfS_M", "a btrfs file system", COPY),
    (3, b"NTFS    ", "a file system of Windows (NTFS)", "images have a Linux root"),
    (32_769, b"CD001", "a CD image", "import the disk that its system is installed on"),
];
const CONVERT: &str = "make a qcow2 disk of it with `qemu-img convert -O qcow2`";
const COPY: &str = "give it to a VM whose kernel reads it as an extra disk, mount it there and copy its files out as a tar, which can be imported";

/// Tells the format of a disk; `None` if there is no file, or one that is no disk.
///
/// # Errors
/// [`StorageError::BadInput`] for disks that cannot be read, with what to do.
pub(crate) fn look(path: &Utf8Path) -> Result<Option<DiskFormat>, StorageError> {
    if !path.is_absolute() || !path.is_file() {
        return Ok(None);
    }
    let mut head = Vec::new();
    open(path)?.take(HEAD).read_to_end(&mut head).map_err(io_error("reading", path))?;
    let is = |at: usize, signature: &[u8]| head.get(at..).is_some_and(|rest| rest.starts_with(signature));
    // A tar has its own mark where a disk of old has nothing; what is packed may have any bytes.
    if is(257, b"ustar") || Compression::of(&head) != Compression::None {
        return Ok(None);
    }
    if let Some((_, _, kind, advice)) = OTHERS.iter().find(|(at, signature, _, _)| is(*at, signature)) {
        return Err(bad_input(path.as_str(), format!("it is {kind}: {advice}")));
    }
    Ok(READABLE.iter().find(|(at, signature, _)| is(*at, signature)).map(|(_, _, format)| *format))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disks_are_told_by_their_first_bytes() {
        let folder = tempfile::tempdir().unwrap();
        let path = Utf8Path::from_path(folder.path()).unwrap().join("disk");
        let looked = |places: &[(usize, &[u8])]| {
            let mut bytes = vec![0; 70 << 10];
            places.iter().for_each(|(at, part)| bytes[*at..at + part.len()].copy_from_slice(part));
            std::fs::write(&path, bytes).unwrap();
            look(&path)
        };
        for (at, signature, format) in READABLE {
            assert_eq!(looked(&[(at, signature)]).unwrap(), Some(format), "{signature:?}");
        }
        for (at, signature, kind, _) in OTHERS {
            // Also where the mark of a boot sector is, as in NTFS.
            let error = looked(&[(at, signature), (510, b"\x55\xaa")]).unwrap_err().to_string();
            assert!(error.contains(kind), "{error}");
        }
        assert_eq!(looked(&[]).unwrap(), None);
        assert_eq!(looked(&[(257, b"ustar"), (510, b"\x55\xaa")]).unwrap(), None);
        // As an archive is packed, also with a frame without data first, as pzstd writes it.
        for packed in [&b"\x1f\x8b"[..], b"\x28\xb5\x2f\xfd", b"\x50\x2a\x4d\x18", b"\xfd7zXZ\0", b"BZh9"] {
            for mark in [(1080, &b"\x53\xef"[..]), (510, b"\x55\xaa")] {
                assert_eq!(looked(&[(0, packed), mark]).unwrap(), None, "{packed:?}");
            }
        }
        std::fs::write(&path, b"").unwrap();
        assert_eq!(look(&path).unwrap(), None);
        assert_eq!(look(Utf8Path::new("/none/there")).unwrap(), None);
        assert_eq!(look(Utf8Path::new("relative")).unwrap(), None);
        assert_eq!(look(Utf8Path::new("/dev/zero")).unwrap(), None);
    }
}
