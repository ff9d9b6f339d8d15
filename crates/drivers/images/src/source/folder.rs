//! An image from a folder of the host.

use std::collections::HashMap;
use std::fs::{self, File, Metadata};
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use camino::Utf8Path;
use microvm_durable::error::{bad_input, errno, io_error};
use microvm_ports::StorageError;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::builder::{Builder, path_error};
use crate::erofs::{Attributes, Kind, Xattr, is_wanted_xattr};

/// Largest attribute value asked for.
const XATTR_MAX: usize = 64 << 10;

/// Takes in everything below `folder`, on its file system or not; links are kept, never followed. Sockets are left
/// out: they mean nothing without their owner. For a caller who is not root, the caller's own files become root's, since
/// nobody else could have made them so. Owner and mode of the folder itself say who may use it on the host: the root of the
/// image is root's.
pub(crate) fn add_folder(builder: &mut Builder, folder: &Utf8Path) -> Result<(), StorageError> {
    let own = rustix::process::geteuid().as_raw();
    let own = (own != 0).then_some((own, rustix::process::getegid().as_raw()));
    add_folder_at(
        builder,
        folder,
        b"",
        own.map_or(Owners::Kept, |(uid, gid)| Owners::WithoutCaller(uid, gid)),
    )
}

/// Owners of what comes from a folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Owners {
    /// Those on the host.
    Kept,
    /// Those on the host, with root in the place of this user and this group.
    WithoutCaller(u32, u32),
    /// Root.
    Root,
}

/// Takes in everything below `folder` at `place` in the image; see [`add_folder`].
pub(crate) fn add_folder_at(
    builder: &mut Builder,
    folder: &Utf8Path,
    place: &[u8],
    owners: Owners,
) -> Result<(), StorageError> {
    let mut seen: HashMap<(u64, u64), Vec<u8>> = HashMap::new();
    let mut pending: Vec<(PathBuf, Vec<u8>)> = vec![(folder.as_std_path().to_owned(), place.to_vec())];
    while let Some((path, inside)) = pending.pop() {
        builder.cancel.check()?;
        let shown = shown(&path);
        let metadata = if inside == place { fs::metadata(&path) } else { fs::symlink_metadata(&path) };
        let metadata = metadata.map_err(io_error("examining", &shown))?;
        let file_type = metadata.file_type();
        if file_type.is_socket() {
            continue;
        }
        let shared = metadata.nlink() > 1 && !file_type.is_dir();
        if shared && let Some(first) = seen.get(&(metadata.dev(), metadata.ino())) {
            builder.tree.hard_link(&inside, first).map_err(|error| path_error(folder.as_str(), error))?;
            continue;
        }
        let kind = if file_type.is_dir() {
            for entry in fs::read_dir(&path).map_err(io_error("listing", &shown))? {
                let entry = entry.map_err(io_error("listing", &shown))?;
                let mut name = inside.clone();
                name.push(b'/');
                name.extend(entry.file_name().as_bytes());
                pending.push((entry.path(), name));
            }
            Kind::Directory(std::collections::BTreeMap::new())
        } else if file_type.is_symlink() {
            let target = fs::read_link(&path).map_err(io_error("reading the link", &shown))?;
            Kind::Symlink(target.as_os_str().as_bytes().into())
        } else if file_type.is_file() {
            read_file(builder, &path, &shown)?
        } else if file_type.is_fifo() {
            Kind::Fifo
        } else {
            let (major, minor) = (rustix::fs::major(metadata.rdev()), rustix::fs::minor(metadata.rdev()));
            if file_type.is_char_device() {
                Kind::CharacterDevice(major, minor)
            } else {
                Kind::BlockDevice(major, minor)
            }
        };
        let mut attributes = attributes(&metadata, owners);
        attributes.xattrs = xattrs(&path, &shown)?;
        if inside.is_empty() {
            (attributes.mode, attributes.uid, attributes.gid) = (0o755, 0, 0);
        }
        builder.insert(folder.as_str(), &inside, attributes, kind)?;
        if shared {
            seen.insert((metadata.dev(), metadata.ino()), inside);
        }
    }
    Ok(())
}

fn read_file(builder: &mut Builder, path: &Path, shown: &Utf8Path) -> Result<Kind, StorageError> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let mut file = File::from(rustix::fs::open(path, flags, Mode::empty()).map_err(errno("opening", shown))?);
    let metadata = file.metadata().map_err(io_error("examining", shown))?;
    if !metadata.is_file() {
        return Err(bad_input(shown.as_str(), "it changed while it was read"));
    }
    let size = metadata.len();
    let data = builder.file(shown.as_str(), &mut file.by_ref().take(size), size, None)?;
    Ok(Kind::File(data))
}

fn attributes(metadata: &Metadata, owners: Owners) -> Attributes {
    let owner = (metadata.uid(), metadata.gid());
    let (uid, gid) = match owners {
        Owners::WithoutCaller(uid, gid) => {
            (if owner.0 == uid { 0 } else { owner.0 }, if owner.1 == gid { 0 } else { owner.1 })
        }
        Owners::Kept => owner,
        Owners::Root => (0, 0),
    };
    Attributes {
        mode: u16::try_from(metadata.mode() & 0o7777).unwrap_or(0),
        uid,
        gid,
        modified: metadata.mtime(),
        modified_ns: u32::try_from(metadata.mtime_nsec()).unwrap_or(0),
        xattrs: Vec::new(),
    }
}

/// Attributes that belong into an image; a file system without them has none.
fn xattrs(path: &Path, shown: &Utf8Path) -> Result<Vec<Xattr>, StorageError> {
    let failed = |error| errno("reading the extended attributes of", shown)(error);
    let mut names = vec![0u8; XATTR_MAX];
    let length = match rustix::fs::llistxattr(path, &mut names[..]) {
        Ok(length) => length,
        Err(Errno::OPNOTSUPP) => return Ok(Vec::new()),
        Err(error) => return Err(failed(error)),
    };
    let mut found = Vec::new();
    for name in names[..length].split(|byte| *byte == 0).filter(|name| is_wanted_xattr(name)) {
        let mut value = vec![0u8; XATTR_MAX];
        match rustix::fs::lgetxattr(path, name, &mut value[..]) {
            Ok(length) => value.truncate(length),
            Err(error) => return Err(failed(error)),
        }
        found.push(Xattr { name: name.to_vec(), value });
    }
    Ok(found)
}

fn shown(path: &Path) -> camino::Utf8PathBuf {
    path.to_string_lossy().into_owned().into()
}
