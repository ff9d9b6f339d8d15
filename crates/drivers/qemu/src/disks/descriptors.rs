//! Sets of descriptors by which QEMU, which can open nothing in its cage, opens the files of disks.

use std::collections::HashSet;

use camino::Utf8Path;
use serde_json::Value;

/// First number of the sets of descriptors of a disk's files; QEMU chooses the lowest free ones itself.
const FIRST_SET: usize = 1_000;
/// Numbers for each disk: more than layers that a disk may have.
const SETS_PER_DISK: usize = 1_000;

/// Mark of a set of descriptors: its node and its file.
pub(crate) fn mark_of(node: &str, path: &Utf8Path) -> String {
    format!("{node} {}", path.file_name().unwrap_or_default())
}

/// Number of the set for the layer at `depth` of the disk `index` that is handed over to a VMM that waits.
pub(crate) const fn set_of_layer(index: usize, depth: usize) -> usize {
    FIRST_SET + index * SETS_PER_DISK + depth
}

/// True if a set of descriptors was handed over for a layer that no block node has open any more. `files`: names of the files
/// that nodes have open.
pub(crate) fn is_of_a_layer(set: &Value, files: &HashSet<&str>) -> bool {
    let number = set.as_u64().and_then(|number| usize::try_from(number).ok());
    number.is_some_and(|number| number >= FIRST_SET && !files.contains(path_of_set(number).as_str()))
}

/// Path by which QEMU opens a set of descriptors.
pub(crate) fn path_of_set(set: usize) -> String {
    format!("/dev/fdset/{set}")
}
