//! The header of a qcow2 file, read strictly: the bytes are a stranger's.
//!
//! A header can name other files of the host (backing file, external data file) that QEMU would open. So such files are
//! refused, as is every feature that is not known here. Source: `docs/interop/qcow2.txt` of QEMU.

/// First four bytes: `QFI` and 0xfb.
pub(crate) const MAGIC: u32 = 0x5146_49fb;
/// Longest backing file name.
const BACKING_NAME_MAX: u32 = 1023;
/// Bit 0: left dirty. Bit 1: marked corrupt. Bit 2: external data file. Bit 3: compression type. Bit 4: extended L2.
const INCOMPATIBLE_FINE: u64 = 0b1_1001;
/// Length of a version 3 header without the compression type.
const V3_LENGTH: u32 = 104;

/// Fields of the header that are used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Qcow2Header {
    /// Version, 2 or 3.
    pub version: u32,
    /// Size of a cluster as a power of two, 9 to 21.
    pub cluster_bits: u32,
    /// Size of the disk in bytes.
    pub virtual_size: u64,
}

/// Reason for which a qcow2 file is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Qcow2Error {
    /// The magic bytes are missing.
    NotQcow2,
    /// The file ends inside the header.
    Short,
    /// A version other than 2 and 3.
    Version(u32),
    /// It names a file below it.
    Backing,
    /// It names a file that holds its data.
    DataFile,
    /// It was marked corrupt by QEMU.
    Corrupt,
    /// Features that are not known here.
    Features(u64),
    /// It is encrypted.
    Encrypted,
    /// A field is outside what the format allows.
    Field(&'static str),
}

impl std::fmt::Display for Qcow2Error {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::NotQcow2 => formatter.write_str("it is not a qcow2 file"),
            Self::Short => formatter.write_str("it ends inside its header"),
            Self::Version(version) => write!(formatter, "it has version {version}; 2 and 3 are known"),
            Self::Backing => formatter.write_str("it has a backing file, which could be any file of the host; make it stand alone with `qemu-img convert`"),
            Self::DataFile => formatter.write_str("it has an external data file, which could be any file of the host; make it stand alone with `qemu-img convert`"),
            Self::Corrupt => formatter.write_str("it is marked as corrupt; repair it with `qemu-img check -r all`"),
            Self::Features(bits) => write!(formatter, "it uses features that are not known here ({bits:#x})"),
            Self::Encrypted => formatter.write_str("it is encrypted"),
            Self::Field(name) => write!(formatter, "the field `{name}` of its header has an impossible value"),
        }
    }
}

impl std::error::Error for Qcow2Error {}

fn u32_at(bytes: &[u8], at: usize) -> Result<u32, Qcow2Error> {
    bytes
        .get(at..at + 4)
        .and_then(|part| part.try_into().ok())
        .map(u32::from_be_bytes)
        .ok_or(Qcow2Error::Short)
}

fn u64_at(bytes: &[u8], at: usize) -> Result<u64, Qcow2Error> {
    bytes
        .get(at..at + 8)
        .and_then(|part| part.try_into().ok())
        .map(u64::from_be_bytes)
        .ok_or(Qcow2Error::Short)
}

impl Qcow2Header {
    /// Reads the first bytes of a file (4096 are enough). `file_length`: of the whole file.
    ///
    /// # Errors
    /// [`Qcow2Error`] for everything that is not a complete, self-contained qcow2 file of known features.
    pub fn parse(bytes: &[u8], file_length: u64) -> Result<Self, Qcow2Error> {
        if u32_at(bytes, 0).is_ok_and(|magic| magic != MAGIC) || bytes.len() < 4 {
            return Err(Qcow2Error::NotQcow2);
        }
        let version = u32_at(bytes, 4)?;
        if !(2..=3).contains(&version) {
            return Err(Qcow2Error::Version(version));
        }
        let (backing_offset, backing_length) = (u64_at(bytes, 8)?, u32_at(bytes, 16)?);
        if backing_offset != 0 || backing_length != 0 {
            return if backing_length > BACKING_NAME_MAX {
                Err(Qcow2Error::Field("backing_file_size"))
            } else {
                Err(Qcow2Error::Backing)
            };
        }
        let cluster_bits = u32_at(bytes, 20)?;
        if !(9..=21).contains(&cluster_bits) {
            return Err(Qcow2Error::Field("cluster_bits"));
        }
        let virtual_size = u64_at(bytes, 24)?;
        if u32_at(bytes, 32)? != 0 {
            return Err(Qcow2Error::Encrypted);
        }
        let (l1_size, l1_offset) = (u64::from(u32_at(bytes, 36)?), u64_at(bytes, 40)?);
        let (refcount_offset, refcount_clusters) = (u64_at(bytes, 48)?, u64::from(u32_at(bytes, 56)?));
        // QEMU's own limit (QCOW_MAX_SNAPSHOTS).
        if u32_at(bytes, 60)? > 65_536 {
            return Err(Qcow2Error::Field("nb_snapshots"));
        }
        let mut header_length = 72;
        let mut extended = false;
        if version == 3 {
            let incompatible = u64_at(bytes, 72)?;
            if incompatible & 0b100 != 0 {
                return Err(Qcow2Error::DataFile);
            }
            if incompatible & 0b10 != 0 {
                return Err(Qcow2Error::Corrupt);
            }
            if incompatible & !INCOMPATIBLE_FINE != 0 {
                return Err(Qcow2Error::Features(incompatible & !INCOMPATIBLE_FINE));
            }
            extended = incompatible & 0b1_0000 != 0;
            if u32_at(bytes, 96)? > 6 {
                return Err(Qcow2Error::Field("refcount_order"));
            }
            header_length = u32_at(bytes, 100)?;
            if header_length < V3_LENGTH || !header_length.is_multiple_of(8) || header_length > 1 << 12 {
                return Err(Qcow2Error::Field("header_length"));
            }
        }
        let cluster = 1u64 << cluster_bits;
        let per_table = cluster / if extended { 16 } else { 8 };
        let needed = virtual_size.div_ceil(cluster).div_ceil(per_table);
        let inside = |offset: u64, length: u64| {
            offset.is_multiple_of(cluster) && offset.checked_add(length).is_some_and(|end| end <= file_length)
        };
        // QEMU itself refuses tables larger than 32 MiB (L1) and 8 MiB (reference counts).
        if l1_size < needed || l1_size > (32 << 20) / 8 || !inside(l1_offset, l1_size * 8) {
            return Err(Qcow2Error::Field("l1_table"));
        }
        if refcount_clusters == 0
            || refcount_clusters * cluster > 8 << 20
            || refcount_offset == 0
            || !inside(refcount_offset, refcount_clusters * cluster)
        {
            return Err(Qcow2Error::Field("refcount_table"));
        }
        Self::check_extensions(bytes, header_length, cluster)?;
        Ok(Self { version, cluster_bits, virtual_size })
    }

    /// No extension may name an external data file, whatever the feature bits say.
    fn check_extensions(bytes: &[u8], header_length: u32, cluster: u64) -> Result<(), Qcow2Error> {
        const DATA_FILE: u32 = 0x4441_5441;
        let end = cluster.min(4096);
        let mut at = u64::from(header_length);
        while at + 8 <= end {
            let place = usize::try_from(at).map_err(|_| Qcow2Error::Short)?;
            let (kind, length) = (u32_at(bytes, place)?, u64::from(u32_at(bytes, place + 4)?));
            match kind {
                0 => return Ok(()),
                DATA_FILE => return Err(Qcow2Error::DataFile),
                _ => at += 8 + length.next_multiple_of(8),
            }
        }
        Ok(())
    }
}

/// True if nothing was ever written to a layer of ours: its L1 table has no entry.
pub(crate) fn is_empty_overlay(path: &camino::Utf8Path) -> Result<bool, microvm_ports::StorageError> {
    use microvm_durable::error::io_error;
    use std::os::unix::fs::FileExt;
    let file = std::fs::File::open(path).map_err(io_error("opening", path))?;
    let mut header = [0; 104];
    file.read_exact_at(&mut header, 0).map_err(io_error("reading", path))?;
    let (Ok(entries), Ok(offset)) = (u32_at(&header, 36), u64_at(&header, 40)) else { return Ok(false) };
    // Larger tables than a 16 TiB disk has are not ours; a layer that is kept for nothing does no harm.
    let length = u64::from(entries) * 8;
    if length > 1 << 20 {
        return Ok(false);
    }
    let mut table = vec![0; usize::try_from(length).unwrap_or(0)];
    file.read_exact_at(&mut table, offset).map_err(io_error("reading", path))?;
    Ok(table.iter().all(|byte| *byte == 0))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::qcow2_overlay;
    use super::*;

    /// A file as our own writer makes it, with its backing file taken out.
    fn sound() -> Vec<u8> {
        let mut bytes = qcow2_overlay::encode(1 << 30, "/base.raw");
        bytes[8..20].fill(0);
        bytes
    }

    fn parse(bytes: &[u8]) -> Result<Qcow2Header, Qcow2Error> {
        Qcow2Header::parse(&bytes[..bytes.len().min(4096)], bytes.len() as u64)
    }

    #[test]
    fn a_sound_file_is_accepted_and_its_size_read() {
        assert_eq!(parse(&sound()), Ok(Qcow2Header { version: 3, cluster_bits: 16, virtual_size: 1 << 30 }));
    }

    #[test]
    fn files_that_name_other_files_are_refused() {
        assert_eq!(parse(&qcow2_overlay::encode(1 << 30, "/etc/shadow")), Err(Qcow2Error::Backing));
        let mut bytes = sound();
        bytes[79] |= 0b100;
        assert_eq!(parse(&bytes), Err(Qcow2Error::DataFile));
        let mut bytes = sound();
        bytes[104..108].copy_from_slice(b"DATA");
        assert_eq!(parse(&bytes), Err(Qcow2Error::DataFile));
        let mut bytes = sound();
        bytes[78] = 1;
        assert_eq!(parse(&bytes), Err(Qcow2Error::Features(0x100)));
        assert_eq!(parse(&sound()[..5000]), Err(Qcow2Error::Field("l1_table")));
    }

    proptest! {
        #[test]
        fn any_header_is_answered_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), length in any::<u64>()) {
            let mut header = b"QFI\xfb\0\0\0\x03".to_vec();
            header.extend(bytes);
            let _ = Qcow2Header::parse(&header, length);
        }

        #[test]
        fn a_changed_header_never_smuggles_in_a_backing_file(at in 8usize..20, value in 1u8..) {
            let mut bytes = sound();
            bytes[at] = value;
            prop_assert!(parse(&bytes).is_err());
        }
    }
}
