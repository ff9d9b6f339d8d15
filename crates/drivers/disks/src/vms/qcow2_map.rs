//! Clusters that a qcow2 top or layer of ours holds. It was written by a VMM that may have been under its guest's control:
//! every place is checked, and what it can lie about is what the guest could have written anyway.

use std::fs::File;
use std::os::unix::fs::FileExt;

use camino::{Utf8Path, Utf8PathBuf};
use microvm_durable::error::{damaged, io_error};
use microvm_ports::StorageError;

use super::qcow2::MAGIC;

/// All our tops have clusters of 64 KiB.
pub(super) const CLUSTER: u64 = 64 << 10;
/// Clusters that one entry of the L1 table stands for.
pub(super) const PER_TABLE: u64 = CLUSTER / 8;
/// Bits 9 to 55 of an entry: where in the file.
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
const COMPRESSED: u64 = 1 << 62;
const ZERO: u64 = 1;
/// Incompatible features that change nothing about where data is: bit 0 (left dirty).
const FINE: u64 = 1;

/// Place of a cluster's content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cluster {
    /// In what lies below.
    Below,
    /// It is zero.
    Zero,
    /// In this file, from this byte on.
    Data(u64),
}

/// One file with its first table.
pub(super) struct Qcow2Map {
    path: Utf8PathBuf,
    file: File,
    length: u64,
    tables: Vec<u64>,
}

fn number<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut number = [0; N];
    number.copy_from_slice(&bytes[at..at + N]);
    number
}

impl Qcow2Map {
    /// Opens a file of ours that holds a disk of `bytes`.
    pub(super) fn open(path: &Utf8Path, bytes: u64) -> Result<Self, StorageError> {
        let file = File::open(path).map_err(io_error("opening", path))?;
        let length = file.metadata().map_err(io_error("examining", path))?.len();
        let bad = |detail: &str| damaged(path.to_string(), detail);
        let mut header = [0; 104];
        file.read_exact_at(&mut header, 0).map_err(io_error("reading", path))?;
        let word = |at| u32::from_be_bytes(number(&header, at));
        let long = |at| u64::from_be_bytes(number(&header, at));
        let ours = word(0) == MAGIC && word(4) == 3 && word(20) == CLUSTER.trailing_zeros() && word(32) == 0;
        if !ours || long(24) != bytes || long(72) & !FINE != 0 {
            return Err(bad("it is not a disk of ours, or not of this size"));
        }
        let needed = bytes.div_ceil(CLUSTER).div_ceil(PER_TABLE);
        let (entries, offset) = (u64::from(word(36)), long(40));
        // 4 Mi entries are the most QEMU itself takes.
        if entries < needed
            || needed > 4 << 20
            || offset.checked_add(needed * 8).is_none_or(|end| end > length)
        {
            return Err(bad("its table lies outside of it"));
        }
        let mut table = vec![0; usize::try_from(needed * 8).unwrap_or(0)];
        file.read_exact_at(&mut table, offset).map_err(io_error("reading", path))?;
        let tables = table.chunks_exact(8).map(|entry| u64::from_be_bytes(number(entry, 0)) & OFFSET);
        Ok(Self { path: path.to_owned(), file, length, tables: tables.collect() })
    }

    /// The clusters that the entry `index` of the first table stands for; `None`: all are below.
    pub(super) fn clusters(&self, index: usize) -> Result<Option<Vec<Cluster>>, StorageError> {
        let Some(offset) = self.tables.get(index).copied().filter(|offset| *offset != 0) else {
            return Ok(None);
        };
        self.check(offset)?;
        let mut table = vec![0; usize::try_from(CLUSTER).unwrap_or(0)];
        self.file.read_exact_at(&mut table, offset).map_err(io_error("reading", &self.path))?;
        let entries = table.chunks_exact(8).map(|entry| u64::from_be_bytes(number(entry, 0)));
        entries.map(|entry| self.cluster(entry)).collect::<Result<Vec<_>, _>>().map(Some)
    }

    /// True if all tables can be followed.
    pub(super) fn check_all(&self) -> Result<(), StorageError> {
        (0..self.tables.len()).try_for_each(|index| self.clusters(index).map(drop))
    }

    fn cluster(&self, entry: u64) -> Result<Cluster, StorageError> {
        if entry & COMPRESSED != 0 {
            return Err(damaged(self.path.to_string(), "it has compressed parts, which are never ours"));
        }
        match (entry & ZERO != 0, entry & OFFSET) {
            (true, _) => Ok(Cluster::Zero),
            (false, 0) => Ok(Cluster::Below),
            (false, offset) => self.check(offset).map(|()| Cluster::Data(offset)),
        }
    }

    fn check(&self, offset: u64) -> Result<(), StorageError> {
        // The last cluster of a file may end early.
        if !offset.is_multiple_of(CLUSTER) || offset >= self.length {
            return Err(damaged(self.path.to_string(), format!("it names byte {offset} of itself")));
        }
        Ok(())
    }

    /// Reads a cluster; what the file has no bytes of is zero.
    pub(super) fn read(&self, offset: u64, into: &mut [u8]) -> Result<(), StorageError> {
        super::write_back::read_padded(&self.file, &self.path, offset, into)
    }
}

#[cfg(test)]
mod tests {
    use super::super::qcow2_overlay;
    use super::*;

    fn map_of(bytes: &[u8], size: u64) -> Result<Qcow2Map, StorageError> {
        let directory = tempfile::tempdir().unwrap();
        let path = Utf8PathBuf::from_path_buf(directory.path().join("top")).unwrap();
        std::fs::write(&path, bytes).unwrap();
        Qcow2Map::open(&path, size)
    }

    #[test]
    fn a_new_top_holds_nothing_and_another_size_is_refused() {
        let bytes = qcow2_overlay::encode(1 << 30, "x");
        let map = map_of(&bytes, 1 << 30).unwrap();
        assert_eq!(
            (map.clusters(0).unwrap(), map.clusters(1).unwrap(), map.clusters(2).unwrap()),
            (None, None, None)
        );
        assert!(map_of(&bytes, 1 << 29).is_err());
    }

    #[test]
    fn places_outside_of_the_file_are_refused() {
        let cluster = usize::try_from(CLUSTER).unwrap();
        let mut bytes = qcow2_overlay::encode(1 << 29, "x");
        let table_at = 3 * cluster;
        bytes[table_at..table_at + 8].copy_from_slice(&((4 * CLUSTER) | (1 << 63)).to_be_bytes());
        bytes.resize(5 * cluster, 0);
        let entry = |number: usize, value: u64, bytes: &mut Vec<u8>| {
            let at = 4 * cluster + number * 8;
            bytes[at..at + 8].copy_from_slice(&value.to_be_bytes());
        };
        entry(0, (1 << 63) | (2 * CLUSTER), &mut bytes);
        entry(1, 1, &mut bytes);
        let clusters = map_of(&bytes, 1 << 29).unwrap().clusters(0).unwrap().unwrap();
        assert_eq!(clusters[..3], [Cluster::Data(2 * CLUSTER), Cluster::Zero, Cluster::Below]);
        for wrong in [(1 << 62) | CLUSTER, 5 * CLUSTER, CLUSTER + 512] {
            entry(2, wrong, &mut bytes);
            assert!(map_of(&bytes, 1 << 29).unwrap().clusters(0).is_err(), "{wrong:#x}");
        }
    }
}
