//! An image from a folder of the host.

use std::collections::HashMap;
use std::fs::{self, File, FileType, Metadata};
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
///
/// With [`Owners::Root`] it is laid over what the image has: directories that are there, also behind links, stay as they are and
/// get the entries; nothing replaces a directory. Set-id bits and capabilities were given to other users of the host, and are left
/// out: as root's they would mean more.
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
        // What is named may be a link to a folder; links in it are links.
        let metadata = if inside == place { fs::metadata(&path) } else { fs::symlink_metadata(&path) };
        let metadata = metadata.map_err(io_error("examining", &shown))?;
        let file_type = metadata.file_type();
        if file_type.is_socket() {
            continue;
        }
        if owners == Owners::Root && is_there(builder, folder, &inside, file_type)? {
            list(&path, &shown, &inside, &mut pending)?;
            continue;
        }
        let shared = metadata.nlink() > 1 && !file_type.is_dir();
        if shared && let Some(first) = seen.get(&(metadata.dev(), metadata.ino())) {
            builder.tree.hard_link(&inside, first).map_err(|error| path_error(folder.as_str(), error))?;
            continue;
        }
        let kind = if file_type.is_dir() {
            list(&path, &shown, &inside, &mut pending)?;
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
        if owners == Owners::Root {
            attributes.mode &= if file_type.is_dir() { 0o1777 } else { 0o777 };
            attributes.xattrs.retain(|xattr| xattr.name != b"security.capability");
        }
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

/// Notes the entries of a directory of the host.
fn list(
    path: &Path,
    shown: &Utf8Path,
    inside: &[u8],
    pending: &mut Vec<(PathBuf, Vec<u8>)>,
) -> Result<(), StorageError> {
    for entry in fs::read_dir(path).map_err(io_error("listing", shown))? {
        let entry = entry.map_err(io_error("listing", shown))?;
        let name = [inside, b"/", entry.file_name().as_bytes()].concat();
        pending.push((entry.path(), name));
    }
    Ok(())
}

/// True if an entry is a directory that the image has already.
fn is_there(
    builder: &Builder,
    folder: &Utf8Path,
    inside: &[u8],
    new: FileType,
) -> Result<bool, StorageError> {
    if new.is_dir() {
        return Ok(builder.tree.leads_to_directory(inside));
    }
    // A link may take the place of a link, never that of a directory.
    let replaces = if new.is_symlink() {
        builder.tree.is_directory(inside)
    } else {
        builder.tree.leads_to_directory(inside)
    };
    if replaces { Err(over_directory(folder.as_str(), inside)) } else { Ok(false) }
}

/// The refusal of an entry that would take the place of a directory of the image.
pub(super) fn over_directory(what: &str, path: &[u8]) -> StorageError {
    bad_input(
        what,
        format!(
            "the image has a directory at `{}`, or a link to one: name the file inside of it, or remove it with `commands`",
            String::from_utf8_lossy(path).escape_debug()
        ),
    )
}

fn read_file(builder: &mut Builder, path: &Path, shown: &Utf8Path) -> Result<Kind, StorageError> {
    // It may have become a link or a FIFO since it was examined.
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let mut file = File::from(rustix::fs::open(path, flags, Mode::empty()).map_err(errno("opening", shown))?);
    let metadata = file.metadata().map_err(io_error("examining", shown))?;
    if !metadata.is_file() {
        return Err(bad_input(shown.as_str(), "it changed while it was read"));
    }
    let size = metadata.len();
    // One that grows meanwhile is taken as long as it was.
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
pub(super) fn xattrs(path: &Path, shown: &Utf8Path) -> Result<Vec<Xattr>, StorageError> {
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

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use microvm_durable::cancel::Cancel;
    use microvm_ports::Progress;

    use super::*;
    use crate::config::ArchiveLimits;
    use crate::erofs::TreeMemory;

    /// An image with merged directories, and a folder of the host.
    struct Case {
        builder: Builder,
        folder: camino::Utf8PathBuf,
        _scratch: tempfile::TempDir,
    }

    impl Case {
        fn new() -> Self {
            let scratch = tempfile::tempdir().unwrap();
            let path = Utf8Path::from_path(scratch.path()).unwrap();
            let (limits, memory) = (ArchiveLimits::default(), TreeMemory::of(1 << 20));
            let mut builder =
                Builder::new(path.join("spool"), limits, memory, Cancel::default(), Progress::ignored())
                    .unwrap();
            let directory = || Kind::Directory(std::collections::BTreeMap::new());
            let owned = Attributes { uid: 7, ..Attributes::root(0o1777) };
            builder.insert("", b"usr/lib", owned, directory()).unwrap();
            builder.insert("", b"etc", Attributes::root(0o755), directory()).unwrap();
            for (link, target) in
                [(&b"lib"[..], &b"usr/lib"[..]), (b"abs", b"/usr/lib"), (b"gone", b"nowhere")]
            {
                builder.insert("", link, Attributes::root(0o777), Kind::Symlink(target.into())).unwrap();
            }
            builder.put("usr/lib/old", 0o644, b"old").unwrap();
            builder.tree.next_layer();
            let folder = path.join("folder");
            fs::create_dir(&folder).unwrap();
            Self { builder, folder, _scratch: scratch }
        }

        fn add(&mut self, place: &str) -> Result<(), StorageError> {
            add_folder_at(&mut self.builder, &self.folder, place.as_bytes(), Owners::Root)
        }

        fn attributes(&self, path: &str) -> &Attributes {
            &self.builder.tree.node(self.builder.tree.find(path.as_bytes()).unwrap().unwrap()).attributes
        }
    }

    #[test]
    fn a_folder_goes_into_directories_behind_links() {
        for place in ["", "lib", "abs"] {
            let mut case = Case::new();
            let below = if place.is_empty() { case.folder.join("lib/sub") } else { case.folder.join("sub") };
            fs::create_dir_all(&below).unwrap();
            fs::write(below.join("new"), "new").unwrap();
            case.add(place).unwrap();
            for link in ["lib", "abs"] {
                assert!(!case.builder.tree.is_directory(link.as_bytes()), "{place}");
            }
            for file in ["usr/lib/old", "usr/lib/sub/new"] {
                assert!(case.builder.has(file.as_bytes()), "{place} {file}");
            }
            // The directory keeps mode, owner and time.
            assert_eq!(*case.attributes("usr/lib"), Attributes { uid: 7, ..Attributes::root(0o1777) });
        }
    }

    #[test]
    fn nothing_replaces_a_directory_and_links_replace_links() {
        for name in ["lib", "etc"] {
            let mut case = Case::new();
            fs::write(case.folder.join(name), "x").unwrap();
            assert!(case.add("").unwrap_err().to_string().contains("directory"), "{name}");
            let mut case = Case::new();
            symlink("elsewhere", case.folder.join(name)).unwrap();
            assert_eq!(case.add("").is_err(), name == "etc");
        }
        let mut case = Case::new();
        fs::create_dir(case.folder.join("gone")).unwrap();
        case.add("").unwrap();
        assert!(case.builder.tree.is_directory(b"gone"));
    }

    #[test]
    fn set_id_bits_and_capabilities_do_not_become_roots() {
        let mut case = Case::new();
        for (name, mode) in [("tool", 0o6755), ("shared", 0o3777)] {
            let path = case.folder.join(name);
            if name == "tool" {
                fs::write(&path, "x").unwrap()
            } else {
                fs::create_dir(&path).unwrap()
            }
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        }
        if rustix::process::geteuid().is_root() {
            // VFS_CAP_REVISION_2 with CAP_NET_RAW.
            let value = [1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
            let flags = rustix::fs::XattrFlags::empty();
            let path = case.folder.join("tool");
            rustix::fs::setxattr(path.as_std_path(), "security.capability", &value, flags).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o6755)).unwrap();
        }
        case.add("opt").unwrap();
        assert_eq!((case.attributes("opt/tool").mode, case.attributes("opt/shared").mode), (0o755, 0o1777));
        assert_eq!(case.attributes("opt/tool").xattrs, []);
    }
}
