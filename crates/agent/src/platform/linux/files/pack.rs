//! A file or directory as a tar stream, to the host.

pub(super) mod attributes;
pub(super) mod header;
mod sparse;

use std::fs::{self, File, Metadata};
use std::io::{self, ErrorKind};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use microvm_protocol::messages::{LeftOut, Packed, PullArchive, Reply};
use microvm_protocol::mux::StreamHandle;
use tar::{EntryType, Header};
use tokio::runtime::Handle;

use super::path::{absolute, failed};
use crate::core::blocking::blocking;
use crate::core::bulk::Sender;
use crate::core::failure::AgentResult;

const BLOCK: u64 = 512;

/// Packs a path with all below it on the same file system; names are relative to its parent. A report of what
/// is not in the archive follows its end if the request asks for it.
pub(in crate::platform::linux) async fn pack(
    stream: &Arc<StreamHandle>,
    request: PullArchive,
) -> AgentResult<()> {
    let (stream, runtime) = (Arc::clone(stream), Handle::current());
    blocking(move || {
        let root = absolute(&request.path)?;
        let exclude: Vec<&Path> =
            request.exclude.iter().map(|path| absolute(path)).collect::<AgentResult<_>>()?;
        let metadata = fs::symlink_metadata(root).map_err(failed("look at", root))?;
        let mut packer = Packer {
            sender: Sender { stream: &stream, runtime: &runtime, sent: None },
            device: metadata.dev(),
            exclude,
            holes: request.holes,
            pending: Vec::new(),
            links: Links::default(),
            left_out: LeftOut::default(),
        };
        packer.walk(root)?;
        // Two empty blocks are the end of an archive (POSIX, pax).
        packer.pending.extend_from_slice(&[0; 1024]);
        packer.flush()?;
        if request.report {
            let packed = Packed { left_out: Some(packer.left_out) };
            runtime.block_on(stream.send_message(Reply::Packed(packed)))?;
        }
        Ok(())
    })
    .await
}

struct Packer<'a> {
    sender: Sender<'a>,
    device: u64,
    exclude: Vec<&'a Path>,
    /// True: holes are told by a map.
    holes: bool,
    /// Headers that wait, so that thousands of small files do not make thousands of frames.
    pending: Vec<u8>,
    links: Links,
    left_out: LeftOut,
}

/// Files with several names that were packed already, under the first of them.
///
/// A file is device and inode number together: on an overlay file system the files of the image and those of the scratch
/// disk lie in one directory, and their inode numbers are those of two file systems.
#[derive(Default)]
pub(super) struct Links(std::collections::HashMap<(u64, u64), Vec<u8>>);

impl Links {
    /// The name under which a file was packed before; else `name` is kept as its first.
    pub(super) fn first(&mut self, device: u64, inode: u64, name: &[u8]) -> Option<Vec<u8>> {
        use std::collections::hash_map::Entry;
        match self.0.entry((device, inode)) {
            Entry::Occupied(found) => Some(found.get().clone()),
            Entry::Vacant(free) => {
                free.insert(name.to_vec());
                None
            }
        }
    }
}

impl Packer<'_> {
    fn walk(&mut self, root: &Path) -> AgentResult<()> {
        let base = root.parent().unwrap_or(root).to_path_buf();
        let mut waiting = vec![root.to_path_buf()];
        while let Some(path) = waiting.pop() {
            if self.exclude.contains(&path.as_path()) {
                continue;
            }
            let metadata = match fs::symlink_metadata(&path) {
                Ok(metadata) => metadata,
                Err(error) if path != root && is_gone(&error) => continue,
                Err(error) => return Err(failed("look at", &path)(error)),
            };
            let name = path.strip_prefix(&base).unwrap_or(&path);
            let name = if name.as_os_str().is_empty() { Path::new(".") } else { name };
            if metadata.is_dir() && metadata.dev() == self.device {
                match names_below(&path) {
                    Ok(mut below) => waiting.append(&mut below),
                    Err(error) if path != root && is_gone(&error) => continue,
                    Err(error) => return Err(failed("list", &path)(error)),
                }
            } else if metadata.is_dir() && !is_made_up(&path) {
                self.leave_out(&path, "another file system is mounted there: an empty directory was copied");
            }
            self.entry(&path, name, &metadata)?;
        }
        Ok(())
    }

    fn entry(&mut self, path: &Path, name: &Path, metadata: &Metadata) -> AgentResult<()> {
        let mut header = Header::new_ustar();
        header.set_mode(metadata.mode() & 0o7777);
        header.set_uid(metadata.uid().into());
        header.set_gid(metadata.gid().into());
        let mut name = name.as_os_str().as_bytes().to_vec();
        if metadata.is_dir() {
            name.push(b'/');
            header.set_entry_type(EntryType::Directory);
            return self.header(header, path, &name, None, metadata);
        }
        if metadata.is_symlink() {
            let target = match fs::read_link(path) {
                Ok(target) => target,
                // Gone, or something else by now.
                Err(error) if is_gone(&error) || error.kind() == ErrorKind::InvalidInput => return Ok(()),
                Err(error) => return Err(failed("read the link", path)(error)),
            };
            header.set_entry_type(EntryType::Symlink);
            return self.header(header, path, &name, Some(target.as_os_str().as_bytes()), metadata);
        }
        let kind = metadata.file_type();
        if kind.is_socket() {
            self.leave_out(path, "it is a socket");
            return Ok(());
        }
        if metadata.nlink() > 1
            && let Some(target) = self.links.first(metadata.dev(), metadata.ino(), &name)
        {
            header.set_entry_type(EntryType::Link);
            let modified = (metadata.mtime(), metadata.mtime_nsec());
            let records = &header::Records::new();
            let target = Some(&target[..]);
            let entry = header::Entry { name: &name, target, size: 0, map: None, modified, records };
            header::append(&mut self.pending, header, &entry);
            return Ok(());
        }
        if !metadata.is_file() {
            return self.special(header, path, &name, metadata);
        }
        // It may be something else by now: a link is not followed, and a FIFO not waited for.
        let file = File::options().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path);
        let file = match file {
            Ok(file) => file,
            Err(error) if is_gone(&error) => return Ok(()),
            Err(error) => return Err(failed("open", path)(error)),
        };
        header.set_entry_type(EntryType::Regular);
        let size = metadata.len();
        let mut entry = header::Entry {
            name: &name,
            target: None,
            size,
            map: None,
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            records: &self.records(path)?,
        };
        if self.holes
            && let Some(map) = sparse::map(&file, metadata)
        {
            entry.size = map.encode().len() as u64 + map.stored();
            entry.map = Some(&map);
            return self.sparse(&file, path, header, &entry, &map);
        }
        header::append(&mut self.pending, header, &entry);
        let padding = (BLOCK - size % BLOCK) % BLOCK;
        if size <= 16 * 1024 {
            return self.small(&file, path, size, padding);
        }
        self.flush()?;
        let sent = self.sender.file(&file, path, 0, size)?;
        self.shortened(path, size - sent);
        // The header promised `size` bytes: without them all entries behind it would be out of place.
        self.sender.zeros(size - sent)?;
        self.pending.extend(std::iter::repeat_n(0, usize::try_from(padding).unwrap_or(0)));
        Ok(())
    }

    /// Small files travel together with their headers.
    fn small(&mut self, file: &File, path: &Path, size: u64, padding: u64) -> AgentResult<()> {
        use std::io::Read as _;
        let end = self.pending.len() + usize::try_from(size).unwrap_or(0);
        file.take(size).read_to_end(&mut self.pending).map_err(failed("read", path))?;
        self.shortened(path, (end - self.pending.len()) as u64);
        self.pending.resize(end + usize::try_from(padding).unwrap_or(0), 0);
        if self.pending.len() >= microvm_protocol::frame::GUEST_BULK { self.flush() } else { Ok(()) }
    }

    /// A FIFO or device.
    fn special(
        &mut self,
        mut header: Header,
        path: &Path,
        name: &[u8],
        metadata: &Metadata,
    ) -> AgentResult<()> {
        let kind = metadata.file_type();
        header.set_entry_type(if kind.is_char_device() {
            EntryType::Char
        } else if kind.is_block_device() {
            EntryType::Block
        } else {
            EntryType::Fifo
        });
        if !kind.is_fifo()
            && let Some(ustar) = header.as_ustar_mut()
        {
            ustar.set_device_major(rustix::fs::major(metadata.rdev()));
            ustar.set_device_minor(rustix::fs::minor(metadata.rdev()));
        }
        self.header(header, path, name, None, metadata)
    }

    /// Tells of a file that became shorter while it was read: its size was promised in the header.
    fn shortened(&mut self, path: &Path, missing: u64) {
        if missing > 0 {
            let reason = format!("it became shorter while it was read: its last {missing} bytes are zeros");
            self.leave_out(path, &reason);
        }
    }

    fn leave_out(&mut self, path: &Path, reason: &str) {
        self.left_out.add(path.as_os_str().as_bytes(), reason);
    }

    /// Packs what has no content.
    fn header(
        &mut self,
        header: Header,
        path: &Path,
        name: &[u8],
        target: Option<&[u8]>,
        metadata: &Metadata,
    ) -> AgentResult<()> {
        let modified = (metadata.mtime(), metadata.mtime_nsec());
        let records = &self.records(path)?;
        header::append(
            &mut self.pending,
            header,
            &header::Entry { name, target, size: 0, map: None, modified, records },
        );
        Ok(())
    }

    /// Records of attributes; what was removed meanwhile has none.
    fn records(&mut self, path: &Path) -> AgentResult<header::Records> {
        match attributes::records(path, &mut self.left_out) {
            Err(error) if is_gone(&error.into()) => Ok(header::Records::new()),
            result => result.map_err(failed("read the extended attributes of", path)),
        }
    }

    fn flush(&mut self) -> AgentResult<()> {
        let pending = std::mem::take(&mut self.pending);
        if pending.is_empty() { Ok(()) } else { self.sender.data(pending) }
    }
}

/// True if something was removed since its name was read; a copy that is made later would not have it either.
fn is_gone(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory)
}

/// Everything in a directory, the last name first.
fn names_below(path: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = fs::read_dir(path)?.map(|entry| Ok(entry?.path()));
    let mut below = entries.collect::<io::Result<Vec<PathBuf>>>()?;
    below.sort_unstable_by(|a, b| b.cmp(a));
    Ok(below)
}

/// Returns true for file systems whose content the kernel generates (`/proc`, `/sys`): nothing in them was stored by anybody.
fn is_made_up(path: &Path) -> bool {
    // linux/magic.h.
    const CGROUP: libc::c_long = 0x27_e0eb;
    const CGROUP2: libc::c_long = 0x6367_7270;
    const DEVPTS: libc::c_long = 0x1cd1;
    const PROC: libc::c_long = 0x9fa0;
    const SYSFS: libc::c_long = 0x6265_6572;
    // `/dev` is a tmpfs to statfs.
    let kind = rustix::fs::statfs(path).map(|found| found.f_type);
    path == Path::new("/dev") || matches!(kind, Ok(CGROUP | CGROUP2 | DEVPTS | PROC | SYSFS))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_inode_numbers_of_two_devices_are_two_files() {
        let mut links = Links::default();
        assert_eq!(links.first(1, 77, b"image"), None);
        assert_eq!(links.first(2, 77, b"scratch"), None, "another file was taken for it");
        assert_eq!(links.first(1, 77, b"again").as_deref(), Some(&b"image"[..]));
        assert_eq!(links.first(2, 77, b"again").as_deref(), Some(&b"scratch"[..]));
    }
}
