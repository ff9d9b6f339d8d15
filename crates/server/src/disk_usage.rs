//! Disk space of the root: each file counted once, by what it belongs to.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;

use camino::Utf8Path;
use microvm_types::StoredKind;

/// Bytes on disk by kind and name of the file or directory.
pub(crate) type Found = BTreeMap<(StoredKind, String), u64>;

/// Directories below the root whose entries are things of one kind. A file with several names counts where it is met first, in this
/// order: what is shared before those who share it.
const PLACES: [(&str, StoredKind); 10] = [
    ("images/names", StoredKind::Other),
    ("images/builds", StoredKind::BuildCache),
    ("images", StoredKind::Images),
    ("kernels", StoredKind::Kernels),
    ("memory", StoredKind::Memory),
    ("layers", StoredKind::Layers),
    ("snapshots", StoredKind::Snapshots),
    ("cache", StoredKind::PackageCache),
    ("tmp", StoredKind::Work),
    ("ssh/vms", StoredKind::SshKeys),
];

/// Looks at every file below a root. What vanishes meanwhile takes nothing.
///
/// # Errors
/// If the root or something below it cannot be listed: a sum without it would not be honest.
pub(crate) fn look(root: &Utf8Path) -> io::Result<Found> {
    let (mut found, mut seen) = (Found::new(), HashSet::new());
    for (place, kind) in PLACES {
        things(&root.join(place), kind, &mut found, &mut seen)?;
    }
    things(&root.join("vms"), StoredKind::Vms, &mut found, &mut seen)?;
    // Everything above was seen: this adds directories and what is in no other place.
    let rest = measure(root, &mut seen)?;
    found.insert((StoredKind::Other, "everything else".to_owned()), rest);
    Ok(found)
}

/// Notes the entries of a directory.
fn things(
    place: &Utf8Path,
    kind: StoredKind,
    found: &mut Found,
    seen: &mut HashSet<(u64, u64)>,
) -> io::Result<()> {
    let entries = match place.read_dir_utf8() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name().to_owned();
        // Locks and the like are in the rest.
        if name.starts_with('.') || (kind == StoredKind::Memory && !name.ends_with(".mem")) {
            continue;
        }
        // A place inside a place was looked at before it.
        if kind == StoredKind::Images && matches!(name.as_str(), "names" | "builds") {
            continue;
        }
        let bytes = measure(entry.path(), seen)?;
        // The files of a layer are its data and its sums.
        let name = if kind == StoredKind::Layers { stem(&name).to_owned() } else { name };
        *found.entry((kind, name)).or_default() += bytes;
    }
    Ok(())
}

fn stem(name: &str) -> &str {
    name.split('.').next().unwrap_or(name)
}

/// Bytes of everything at a path that was not seen before.
fn measure(path: &Utf8Path, seen: &mut HashSet<(u64, u64)>) -> io::Result<u64> {
    let metadata = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        metadata => metadata?,
    };
    // Blocks of 512 bytes (stat(2)) and not the length: holes of sparse files take nothing.
    let mut bytes = if seen.insert((metadata.dev(), metadata.ino())) { metadata.blocks() * 512 } else { 0 };
    if !metadata.is_dir() {
        return Ok(bytes);
    }
    let entries = match path.read_dir_utf8() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(bytes),
        entries => entries?,
    };
    for entry in entries {
        bytes += measure(entry?.path(), seen)?;
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_counts_once_and_the_parts_are_the_whole() {
        let folder = tempfile::tempdir().unwrap();
        let root = Utf8Path::from_path(folder.path()).unwrap();
        let file = |path: &str, kib: usize| {
            let path = root.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, vec![1; kib << 10]).unwrap();
            path
        };
        let layer = file("layers/a.qcow2", 1_000);
        file("layers/a.sums", 8);
        fs::create_dir_all(root.join("vms/one")).unwrap();
        fs::hard_link(&layer, root.join("vms/one/below")).unwrap();
        file("vms/one/disk", 100);
        file("images/abc/root.erofs", 2_000);
        file("images/names/x", 4);
        file("images/builds/key", 4);
        file("state.sqlite", 40);
        file("later/added", 40);
        fs::File::create(root.join("vms/one/sparse")).unwrap().set_len(1 << 40).unwrap();
        let found = look(root).unwrap();
        let of = |kind, name: &str| found[&(kind, name.to_owned())] >> 10;
        assert_eq!(of(StoredKind::Layers, "a"), 1_008);
        assert!((100..200).contains(&of(StoredKind::Vms, "one")), "{found:?}");
        assert!((2_000..2_020).contains(&of(StoredKind::Images, "abc")), "{found:?}");
        assert!(of(StoredKind::Other, "everything else") >= 80, "{found:?}");
        let sum: u64 = found.values().sum();
        assert_eq!(sum, measure(root, &mut HashSet::new()).unwrap());
    }
}
