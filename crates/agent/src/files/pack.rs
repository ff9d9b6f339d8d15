//! A file or directory as a tar stream, to the host.

use std::fs::{self, File, Metadata};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use microvm_protocol::messages::PullArchive;
use microvm_protocol::mux::StreamHandle;
use tar::{EntryType, Header};
use tokio::runtime::Handle;

use super::content::Sender;
use super::path::{absolute, failed};
use crate::failure::{AgentError, AgentResult, show};

const BLOCK: u64 = 512;

/// Packs a path with all below it on the same file system; names are relative to its parent.
pub(crate) async fn pack(stream: &Arc<StreamHandle>, request: PullArchive) -> AgentResult<()> {
    let (stream, runtime) = (Arc::clone(stream), Handle::current());
    super::blocking(move || {
        let root = absolute(&request.path)?;
        let exclude: Vec<&Path> =
            request.exclude.iter().map(|path| absolute(path)).collect::<AgentResult<_>>()?;
        let metadata = fs::symlink_metadata(root).map_err(failed("look at", root))?;
        let mut packer = Packer {
            sender: Sender { stream: &stream, runtime: &runtime },
            device: metadata.dev(),
            exclude,
            pending: Vec::new(),
            links: Links::default(),
        };
        packer.walk(root)?;
        packer.pending.extend_from_slice(&[0; 1024]);
        packer.flush()
    })
    .await
}

struct Packer<'a> {
    sender: Sender<'a>,
    device: u64,
    exclude: Vec<&'a Path>,
    /// Headers that wait, so that thousands of small files do not make thousands of frames.
    pending: Vec<u8>,
    links: Links,
}

/// Files with several names that were packed already, under the first of them.
///
/// A file is device and inode number together: on an overlay file system the files of the image and those of the scratch
/// disk lie in one directory, and their inode numbers are those of two file systems.
#[derive(Default)]
struct Links(std::collections::HashMap<(u64, u64), Vec<u8>>);

impl Links {
    /// The name under which a file was packed before; else `name` is kept as its first.
    fn first(&mut self, device: u64, inode: u64, name: &[u8]) -> Option<Vec<u8>> {
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
                // It was removed meanwhile.
                Err(_) if path != root => continue,
                Err(error) => return Err(failed("look at", &path)(error)),
            };
            let name = path.strip_prefix(&base).unwrap_or(&path);
            let name = if name.as_os_str().is_empty() { Path::new(".") } else { name };
            // The mount point itself is packed as an empty directory.
            if metadata.is_dir() && metadata.dev() == self.device {
                let mut below: Vec<PathBuf> = fs::read_dir(&path)
                    .map_err(failed("list", &path))?
                    .flatten()
                    .map(|entry| entry.path())
                    .collect();
                below.sort_unstable_by(|a, b| b.cmp(a));
                waiting.append(&mut below);
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
        header.set_mtime(metadata.mtime().max(0).unsigned_abs());
        let mut name = name.as_os_str().as_bytes().to_vec();
        if metadata.is_dir() {
            name.push(b'/');
            header.set_entry_type(EntryType::Directory);
            return self.header(header, &name, None, 0);
        }
        if metadata.is_symlink() {
            let Ok(target) = fs::read_link(path) else { return Ok(()) };
            header.set_entry_type(EntryType::Symlink);
            return self.header(header, &name, Some(target.as_os_str().as_bytes()), 0);
        }
        if !metadata.is_file() {
            // Sockets, FIFOs and devices mean nothing outside of this guest.
            return Ok(());
        }
        if metadata.nlink() > 1
            && let Some(target) = self.links.first(metadata.dev(), metadata.ino(), &name)
        {
            header.set_entry_type(EntryType::Link);
            return self.header(header, &name, Some(&target), 0);
        }
        let file = File::options().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path);
        let file = match file {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(failed("open", path)(error)),
        };
        let size = metadata.len();
        header.set_entry_type(EntryType::Regular);
        self.header(header, &name, None, size)?;
        let padding = (BLOCK - size % BLOCK) % BLOCK;
        if size <= 16 * 1024 {
            return self.small(&file, path, size, padding);
        }
        self.flush()?;
        let sent = self.sender.file(&file, path, 0, size)?;
        // A file that shrank while it was read: the size was promised in the header.
        self.sender.zeros(size - sent)?;
        self.pending.extend(std::iter::repeat_n(0, usize::try_from(padding).unwrap_or(0)));
        Ok(())
    }

    /// Small files travel together with their headers.
    fn small(&mut self, file: &File, path: &Path, size: u64, padding: u64) -> AgentResult<()> {
        use std::io::Read as _;
        let end = self.pending.len() + usize::try_from(size).unwrap_or(0);
        file.take(size).read_to_end(&mut self.pending).map_err(failed("read", path))?;
        self.pending.resize(end + usize::try_from(padding).unwrap_or(0), 0);
        if self.pending.len() >= microvm_protocol::frame::GUEST_BULK { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> AgentResult<()> {
        let pending = std::mem::take(&mut self.pending);
        if pending.is_empty() { Ok(()) } else { self.sender.data(pending) }
    }

    /// Writes a header, with a pax header before it where names are too long or sizes too large for the old format.
    fn header(
        &mut self,
        mut header: Header,
        name: &[u8],
        target: Option<&[u8]>,
        size: u64,
    ) -> AgentResult<()> {
        let mut records = Vec::new();
        if name.len() > 100 {
            record(&mut records, "path", name);
        }
        if let Some(target) = target.filter(|target| target.len() > 100) {
            record(&mut records, "linkpath", target);
        }
        if !records.is_empty() {
            let mut extension = Header::new_ustar();
            extension.set_entry_type(EntryType::XHeader);
            extension.set_mode(0o644);
            put(&mut extension.as_old_mut().name, b"pax-header");
            extension.set_size(records.len() as u64);
            extension.set_cksum();
            self.pending.extend_from_slice(extension.as_bytes());
            self.pending.extend_from_slice(&records);
            let rest = (512 - records.len() % 512) % 512;
            self.pending.extend(std::iter::repeat_n(0, rest));
        }
        if name.is_empty() {
            return Err(AgentError::internal(format!("{} has no name", show(name))));
        }
        put(&mut header.as_old_mut().name, name);
        put(&mut header.as_old_mut().linkname, target.unwrap_or_default());
        header.set_size(size);
        header.set_cksum();
        self.pending.extend_from_slice(header.as_bytes());
        Ok(())
    }
}

fn put(field: &mut [u8; 100], text: &[u8]) {
    let count = text.len().min(field.len());
    field[..count].copy_from_slice(&text[..count]);
}

/// Appends `length key=value\n`, where the length counts its own digits.
fn record(records: &mut Vec<u8>, key: &str, value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    records.extend_from_slice(format!("{length} {key}=").as_bytes());
    records.extend_from_slice(value);
    records.push(b'\n');
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

    #[test]
    fn pax_records_count_their_own_length() {
        for size in [1, 80, 90, 91, 92, 93, 94, 95, 985, 990, 995, 4000] {
            let mut records = Vec::new();
            record(&mut records, "path", &vec![b'x'; size]);
            let text = String::from_utf8(records.clone()).unwrap();
            let length: usize = text.split(' ').next().unwrap().parse().unwrap();
            assert_eq!(length, records.len());
        }
    }
}
