//! Durable files: written to a temporary name, synced, renamed, directory synced.

use std::fmt::Write as _;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;

use camino::{Utf8Path, Utf8PathBuf};
use microvm_ports::StorageError;
use sha2::{Digest, Sha256};

use super::error::{errno, io_error};

/// Lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// SHA-256 of bytes in hexadecimal.
pub fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// True if `text` is a SHA-256 in lower-case hexadecimal.
pub fn is_sha256(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
}

/// SHA-256 and length of a file.
pub fn sha256_file(path: &Utf8Path) -> Result<(String, u64), StorageError> {
    let mut file = File::open(path).map_err(io_error("opening", path))?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 18];
    let mut length = 0;
    loop {
        let count = file.read(&mut buffer).map_err(io_error("reading", path))?;
        if count == 0 {
            return Ok((hex(&hasher.finalize()), length));
        }
        hasher.update(&buffer[..count]);
        length += count as u64;
    }
}

/// Makes renames and new entries in a directory durable.
pub fn sync_directory(path: &Utf8Path) -> Result<(), StorageError> {
    File::open(path).and_then(|directory| directory.sync_all()).map_err(io_error("syncing", path))
}

/// Makes a directory with a mode, fine if it exists.
pub fn make_directory(path: &Utf8Path, mode: u32) -> Result<(), StorageError> {
    fs::create_dir_all(path).map_err(io_error("creating", path))?;
    fs::set_permissions(path, Permissions::from_mode(mode)).map_err(io_error("setting the mode of", path))
}

/// Writes a new file whole and syncs it. The directory is not synced.
pub fn write_new(path: &Utf8Path, mode: u32, data: &[u8]) -> Result<(), StorageError> {
    let mut file =
        OpenOptions::new().write(true).create_new(true).open(path).map_err(io_error("creating", path))?;
    file.write_all(data).map_err(io_error("writing", path))?;
    file.set_permissions(Permissions::from_mode(mode)).map_err(io_error("setting the mode of", path))?;
    file.sync_all().map_err(io_error("syncing", path))
}

/// Renames within one file system and syncs the directory of the new name.
pub fn rename_durably(from: &Utf8Path, to: &Utf8Path) -> Result<(), StorageError> {
    fs::rename(from, to).map_err(io_error("renaming to", to))?;
    to.parent().map_or(Ok(()), sync_directory)
}

/// True if something is at `path` (a dangling link counts).
pub fn exists(path: &Utf8Path) -> bool {
    path.symlink_metadata().is_ok()
}

/// Refuses early when a file system cannot hold `needed` more bytes. Only an early answer: writing may still fail.
pub fn require_space(path: &Utf8Path, needed: u64, action: &str) -> Result<(), StorageError> {
    let status =
        rustix::fs::statvfs(path.as_std_path()).map_err(errno("asking for the free space of", path))?;
    let free = status.f_bavail.saturating_mul(status.f_frsize);
    if free < needed {
        return Err(StorageError::DiskFull {
            path: path.to_owned(),
            action: action.to_owned(),
            needed: format!("{} MiB", (needed - free).div_ceil(1 << 20)),
        });
    }
    Ok(())
}

/// Free space, in bytes, that imports and archives leave to VMs; of a small file system its fiftieth part.
const RESERVE: u64 = 256 << 20;

/// Like [`require_space`], for content from elsewhere (imports, archives): it leaves a reserve to VMs.
pub fn require_room(path: &Utf8Path, needed: u64, action: &str) -> Result<(), StorageError> {
    let status =
        rustix::fs::statvfs(path.as_std_path()).map_err(errno("asking for the free space of", path))?;
    let total = status.f_blocks.saturating_mul(status.f_frsize);
    require_space(path, needed.saturating_add(RESERVE.min(total / 50)), action)
}

/// Entries of a directory as UTF-8 names, sorted; names that are not UTF-8 are never ours and left out.
pub fn names_in(path: &Utf8Path) -> Result<Vec<String>, StorageError> {
    let mut names = Vec::new();
    for entry in fs::read_dir(path).map_err(io_error("listing", path))? {
        if let Ok(name) = entry.map_err(io_error("listing", path))?.file_name().into_string() {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

/// Bytes a tree takes on disk (blocks, not lengths).
pub fn disk_usage(path: &Utf8Path) -> Result<u64, StorageError> {
    use std::os::unix::fs::MetadataExt;
    let metadata = path.symlink_metadata().map_err(io_error("examining", path))?;
    let mut bytes = metadata.blocks() * 512;
    if metadata.is_dir() {
        for name in names_in(path)? {
            // An entry that vanishes meanwhile takes nothing.
            bytes += disk_usage(&path.join(name)).unwrap_or(0);
        }
    }
    Ok(bytes)
}

/// True if something is mounted below a path. A path with blanks is compared as `/proc` writes it.
fn has_mounts_below(path: &Utf8Path) -> Result<bool, StorageError> {
    let list = Utf8Path::new("/proc/self/mounts");
    fs::read(list).map(|mounts| is_mounted_below(&mounts, path)).map_err(io_error("reading", list))
}

/// As bytes: a mount point of somebody else's need not be text.
fn is_mounted_below(mounts: &[u8], path: &Utf8Path) -> bool {
    let escaped = path
        .as_str()
        .replace('\\', "\\134")
        .replace(' ', "\\040")
        .replace('\t', "\\011")
        .replace('\n', "\\012");
    let below = |point: &[u8]| {
        point.strip_prefix(escaped.as_bytes()).is_some_and(|rest| matches!(rest.first(), None | Some(b'/')))
    };
    let lines = mounts.split(|byte| *byte == b'\n');
    lines.filter_map(|line| line.split(|byte| *byte == b' ').nth(1)).any(below)
}

/// Removes a file or a tree; nothing there is fine. Never goes into another file system: what is mounted is not ours.
pub fn remove_all(path: &Utf8Path) -> Result<(), StorageError> {
    let metadata = match path.symlink_metadata() {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        other => other.map_err(io_error("examining", path))?,
    };
    if metadata.is_dir() && has_mounts_below(path)? {
        let busy = std::io::Error::from(std::io::ErrorKind::ResourceBusy);
        return Err(io_error("removing, because something is mounted in it,", path)(busy));
    }
    let result = if metadata.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    match result {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        other => other.map_err(io_error("removing", path)),
    }
}

/// Creates a file that VMMs read: they run under other users and get it by a mount; the directory lets nobody else through.
pub fn create_for_vmms(path: &Utf8Path) -> Result<std::fs::File, StorageError> {
    use std::os::unix::fs::OpenOptionsExt as _;
    let mut options = std::fs::File::options();
    options.read(true).write(true).create_new(true).mode(0o444).open(path).map_err(io_error("creating", path))
}

/// An absolute path without links, as UTF-8.
pub fn canonical(path: &Utf8Path) -> Result<Utf8PathBuf, StorageError> {
    path.canonicalize_utf8().map_err(io_error("finding", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_mounted_is_never_removed() {
        let below = |path| has_mounts_below(Utf8Path::new(path)).unwrap();
        assert!(below("/") || below("/proc"));
        assert!(below("/proc") && !below("/pro"));
        assert!(remove_all(Utf8Path::new("/proc")).is_err());
    }

    #[test]
    fn a_mount_whose_name_is_no_text_hides_no_other() {
        let mounts = b"tmpfs /mnt/\xe4 tmpfs rw 0 0\ntmpfs /srv/a\\040b/mnt tmpfs rw 0 0\n";
        assert!(is_mounted_below(mounts, Utf8Path::new("/srv/a b")));
        assert!(!is_mounted_below(mounts, Utf8Path::new("/srv/a")));
    }

    #[test]
    fn what_cannot_be_examined_is_not_taken_for_removed() {
        let folder = tempfile::tempdir().unwrap();
        let file = Utf8Path::from_path(folder.path()).unwrap().join("file");
        fs::write(&file, "").unwrap();
        remove_all(&file.with_file_name("nothing")).unwrap();
        // Below a file (ENOTDIR) nothing can be looked at.
        assert!(remove_all(&file.join("below")).is_err());
    }
}
