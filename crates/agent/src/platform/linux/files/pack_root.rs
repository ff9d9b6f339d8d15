//! The root of an image as a tar stream: everything that is on one file system, nothing that is mounted over it.

use std::fs::{self, File, Metadata};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use microvm_protocol::frame::GUEST_BULK;
use microvm_protocol::messages::{FailureKind, LeftOut, Packed, Reply};
use microvm_protocol::mux::StreamHandle;
use rustix::mount::{OpenTreeFlags, open_tree};
use tar::{EntryType, Header};
use tokio::runtime::Handle;

use super::pack::{Links, attributes, header};
use super::path::{absolute, failed};
use crate::core::blocking::blocking;
use crate::core::bulk::Sender;
use crate::core::failure::{AgentError, AgentResult, show};
use crate::platform::linux::system::hosts;

const BLOCK: u64 = 512;
/// Files up to this size travel together with their headers.
const SMALL: u64 = 16 * 1024;

/// Packs what is on the file system at `path`, names relative to it. A report of what is not in the archive follows its end.
pub(in crate::platform::linux) async fn pack_root(
    stream: &Arc<StreamHandle>,
    path: Vec<u8>,
) -> AgentResult<()> {
    let (stream, runtime) = (Arc::clone(stream), Handle::current());
    blocking(move || {
        let root = absolute(&path)?;
        let view = without_mounts(root)?;
        let base = PathBuf::from(format!("/proc/self/fd/{}/.", view.as_raw_fd()));
        let mut packer = Packer::new(Sender { stream: &stream, runtime: &runtime, sent: None }, base);
        packer.walk()?;
        packer.pending.extend_from_slice(&[0; 1024]);
        packer.flush()?;
        let packed = Packed { left_out: Some(packer.left_out) };
        Ok(runtime.block_on(stream.send_message(Reply::Packed(packed)))?)
    })
    .await
}

/// The tree at `path` as a mount of its own that nothing is mounted in: below `/proc`, `/run` or `/etc/hostname` shows what
/// the disks hold.
pub(super) fn without_mounts(path: &Path) -> AgentResult<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    open_tree(rustix::fs::CWD, path, flags).map_err(failed("look below the mounts of", path))
}

/// Packs entries one after the other.
pub(super) struct Packer<'a> {
    sender: Sender<'a>,
    /// Path of the tree.
    pub(super) base: PathBuf,
    /// Headers and small files that wait, so that thousands of them do not make thousands of frames.
    pub(super) pending: Vec<u8>,
    links: Links,
    pub(super) left_out: LeftOut,
}

impl<'a> Packer<'a> {
    /// A packer of the tree at `base`.
    pub(super) fn new(sender: Sender<'a>, base: PathBuf) -> Self {
        Self { sender, base, pending: Vec::new(), links: Links::default(), left_out: LeftOut::default() }
    }

    /// An entry without content, attributes and time.
    pub(super) fn plain(&mut self, header: Header, name: &[u8]) {
        let entry = Entry { name, ..Entry::default() };
        let entry = header::Entry {
            name: entry.name,
            target: None,
            size: 0,
            map: None,
            modified: (0, 0),
            records: &entry.records,
        };
        header::append(&mut self.pending, header, &entry);
    }

    fn walk(&mut self) -> AgentResult<()> {
        let mut waiting = vec![self.base.clone()];
        while let Some(path) = waiting.pop() {
            let name = path.strip_prefix(&self.base).unwrap_or(&path).to_path_buf();
            let metadata = match fs::symlink_metadata(&path) {
                Ok(metadata) => metadata,
                // It was removed meanwhile.
                Err(error) if error.kind() == std::io::ErrorKind::NotFound && path != self.base => continue,
                Err(error) => return Err(failed("look at", &name)(error)),
            };
            if metadata.is_dir() {
                let mut below: Vec<PathBuf> = fs::read_dir(&path)
                    .and_then(|entries| entries.map(|entry| Ok(entry?.path())).collect())
                    .map_err(failed("list", &name))?;
                below.sort_unstable_by(|a, b| b.cmp(a));
                waiting.append(&mut below);
            }
            self.entry(&path, &name, &metadata)?;
        }
        Ok(())
    }

    pub(super) fn entry(&mut self, path: &Path, shown: &Path, metadata: &Metadata) -> AgentResult<()> {
        let name = shown.as_os_str().as_bytes();
        let kind = metadata.file_type();
        if kind.is_socket() {
            self.left_out.add(&[b"/", name].concat(), "it is a socket");
            return Ok(());
        }
        let mut header = Header::new_gnu();
        header.set_mode(metadata.mode() & 0o7777);
        header.set_uid(metadata.uid().into());
        header.set_gid(metadata.gid().into());
        if !kind.is_dir()
            && metadata.nlink() > 1
            && let Some(first) = self.links.first(metadata.dev(), metadata.ino(), name)
        {
            // Attributes and content came with the first name.
            header.set_entry_type(EntryType::Link);
            let entry = Entry { name, target: Some(&first), ..Entry::default() };
            return self.header(header, metadata, &entry);
        }
        let entry = Entry { name, records: packable(path, shown)?, ..Entry::default() };
        if kind.is_file() {
            header.set_entry_type(EntryType::Regular);
            return self.file(path, shown, metadata, header, entry);
        }
        if kind.is_symlink() {
            let target = fs::read_link(path).map_err(failed("read the link", shown))?;
            header.set_entry_type(EntryType::Symlink);
            let entry = Entry { target: Some(target.as_os_str().as_bytes()), ..entry };
            return self.header(header, metadata, &entry);
        }
        if kind.is_dir() {
            header.set_entry_type(EntryType::Directory);
            let name = if name.is_empty() { b"./".to_vec() } else { [name, b"/"].concat() };
            return self.header(header, metadata, &Entry { name: &name, ..entry });
        }
        header.set_entry_type(if kind.is_fifo() {
            EntryType::Fifo
        } else if kind.is_char_device() {
            EntryType::Char
        } else {
            EntryType::Block
        });
        let number = metadata.rdev();
        let field = |error| AgentError::internal(format!("{} has an odd number: {error}", show(name)));
        header.set_device_major(rustix::fs::major(number)).map_err(field)?;
        header.set_device_minor(rustix::fs::minor(number)).map_err(field)?;
        self.header(header, metadata, &entry)
    }

    fn file(
        &mut self,
        path: &Path,
        shown: &Path,
        metadata: &Metadata,
        header: Header,
        mut entry: Entry<'_>,
    ) -> AgentResult<()> {
        let name = entry.name;
        let open = File::options().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path);
        let file = match open {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(failed("open", shown)(error)),
        };
        let size = file.metadata().map_err(failed("look at", shown))?.len();
        let changed = || {
            let text = format!("{} became shorter while it was packed: end what writes to it", show(name));
            AgentError::new(FailureKind::Conflict, text)
        };
        if size <= SMALL {
            use std::io::Read as _;
            let mut content = Vec::new();
            (&file).take(size).read_to_end(&mut content).map_err(failed("read", shown))?;
            if content.len() as u64 != size {
                return Err(changed());
            }
            if name == b"etc/hosts" {
                match hosts::without_own_lines(&content) {
                    // Made by the agent.
                    Some(theirs) if theirs.is_empty() => return Ok(()),
                    Some(theirs) => content = theirs,
                    None => {}
                }
            }
            entry.size = content.len() as u64;
            self.header(header, metadata, &entry)?;
            self.pending.extend_from_slice(&content);
            self.pad(entry.size);
            return if self.pending.len() >= GUEST_BULK { self.flush() } else { Ok(()) };
        }
        entry.size = size;
        self.header(header, metadata, &entry)?;
        self.flush()?;
        if self.sender.file(&file, shown, 0, size)? != size {
            return Err(changed());
        }
        self.pad(size);
        Ok(())
    }

    fn pad(&mut self, size: u64) {
        let rest = usize::try_from(size.next_multiple_of(BLOCK) - size).unwrap_or(0);
        self.pending.resize(self.pending.len() + rest, 0);
    }

    pub(super) fn flush(&mut self) -> AgentResult<()> {
        let pending = std::mem::take(&mut self.pending);
        if pending.is_empty() { Ok(()) } else { self.sender.data(pending) }
    }

    fn header(&mut self, header: Header, metadata: &Metadata, entry: &Entry<'_>) -> AgentResult<()> {
        let Entry { name, target, size, .. } = *entry;
        let modified = (metadata.mtime(), metadata.mtime_nsec());
        header::append(
            &mut self.pending,
            header,
            &header::Entry { name, target, size, map: None, modified, records: &entry.records },
        );
        if self.pending.len() >= GUEST_BULK { self.flush() } else { Ok(()) }
    }
}

/// Content of an entry's headers besides its attributes.
#[derive(Default)]
struct Entry<'a> {
    name: &'a [u8],
    target: Option<&'a [u8]>,
    size: u64,
    records: header::Records,
}

/// The extended attributes that go into an archive: all of them, access control lists as the kernel has them.
fn packable(path: &Path, shown: &Path) -> AgentResult<header::Records> {
    let found = attributes::xattrs(path).map_err(failed("read the extended attributes of", shown))?;
    found
        .into_iter()
        .map(|(name, value)| {
            let unfit = || {
                AgentError::invalid(format!(
                    "the extended attribute {} of {} cannot be packed: its name has a `=`",
                    show(&name),
                    show(shown.as_os_str().as_bytes())
                ))
            };
            Ok((attributes::key(&name).ok_or_else(unfit)?, value))
        })
        .collect()
}
