//! Packing a directory of this host as a tar stream.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::{self, File, Metadata};
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use microvm_types::files::{FileTime, LeftOut};
use tar::{Builder, EntryType, Header};

use crate::copy::extents::ExtentReader;

mod sparse;

/// Writes everything below `directory` to `out`, names below `name`, under which it is an entry itself unless that is empty.
/// Owners become root: users of this host mean
/// nothing in a guest. With `holes` files that have some are told by a map of their data. Returns what was left out: sockets.
pub(crate) fn pack(directory: &Path, name: &Path, holes: bool, out: impl Write) -> io::Result<LeftOut> {
    let mut left_out = LeftOut::default();
    let mut builder = Builder::new(out);
    if !name.as_os_str().is_empty() {
        let metadata = fs::metadata(directory)?;
        time(&mut builder, &metadata)?;
        builder.append_data(&mut header(&metadata, EntryType::Directory, 0), name, io::empty())?;
    }
    let top = name;
    let mut links = Links::default();
    let mut waiting = vec![PathBuf::new()];
    while let Some(relative) = waiting.pop() {
        let mut entries = fs::read_dir(directory.join(&relative))?.collect::<io::Result<Vec<_>>>()?;
        // The same directory gives the same bytes, whatever order the file system lists it in.
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            let below = relative.join(entry.file_name());
            let name = top.join(&below);
            let path = entry.path();
            let metadata = fs::symlink_metadata(&path)?;
            let kind = metadata.file_type();
            if kind.is_socket() {
                left_out.add(path.to_string_lossy(), "it is a socket");
                continue;
            }
            // Before the kinds are told apart: links and devices may have several names, too.
            if let Some(first) = links.first(&metadata, &name) {
                builder.append_link(&mut header(&metadata, EntryType::Link, 0), &name, first)?;
                continue;
            }
            if kind.is_file() {
                append_file(&mut builder, &path, &name, holes)?;
                continue;
            }
            time(&mut builder, &metadata)?;
            if kind.is_dir() {
                let mut header = header(&metadata, EntryType::Directory, 0);
                builder.append_data(&mut header, &name, io::empty())?;
                waiting.push(below);
            } else if kind.is_symlink() {
                let target = fs::read_link(&path)?;
                builder.append_link(&mut header(&metadata, EntryType::Symlink, 0), &name, target)?;
            } else {
                let mut header = special(&metadata)?;
                builder.append_data(&mut header, &name, io::empty())?;
            }
        }
    }
    builder.into_inner()?.flush()?;
    Ok(left_out)
}

/// Files with several names that were packed under one of them, by device and inode number.
#[derive(Default)]
struct Links(HashMap<(u64, u64), PathBuf>);

impl Links {
    /// The name under which a file was packed before; else `name` is kept as its first.
    fn first(&mut self, metadata: &Metadata, name: &Path) -> Option<&Path> {
        use std::collections::hash_map::Entry;
        if metadata.is_dir() || metadata.nlink() < 2 {
            return None;
        }
        match self.0.entry((metadata.dev(), metadata.ino())) {
            Entry::Occupied(found) => Some(found.into_mut()),
            Entry::Vacant(free) => {
                free.insert(name.to_owned());
                None
            }
        }
    }
}

/// Writes the time of the entry to come where a header cannot hold it: parts of a second, and times before 1970.
fn time(builder: &mut Builder<impl Write>, metadata: &Metadata) -> io::Result<()> {
    extensions(builder, exact_time(metadata))
}

fn exact_time(metadata: &Metadata) -> Vec<(&'static str, Vec<u8>)> {
    let nanoseconds = u32::try_from(metadata.mtime_nsec()).unwrap_or(0);
    if nanoseconds == 0 && metadata.mtime() >= 0 {
        return Vec::new();
    }
    vec![("mtime", FileTime::new(metadata.mtime(), nanoseconds).to_string().into_bytes())]
}

fn extensions(builder: &mut Builder<impl Write>, records: Vec<(&'static str, Vec<u8>)>) -> io::Result<()> {
    builder.append_pax_extensions(records.iter().map(|(key, value)| (*key, value.as_slice())))
}

/// The header of a FIFO or device.
fn special(metadata: &Metadata) -> io::Result<Header> {
    let kind = metadata.file_type();
    if kind.is_fifo() {
        return Ok(header(metadata, EntryType::Fifo, 0));
    }
    let kind = if kind.is_char_device() { EntryType::Char } else { EntryType::Block };
    let mut header = header(metadata, kind, 0);
    header.set_device_major(rustix::fs::major(metadata.rdev()))?;
    header.set_device_minor(rustix::fs::minor(metadata.rdev()))?;
    Ok(header)
}

fn append_file(builder: &mut Builder<impl Write>, path: &Path, name: &Path, holes: bool) -> io::Result<()> {
    let file = File::open(path)?;
    let metadata = file.metadata()?;
    if holes && let Some(map) = sparse::map(&file, &metadata) {
        let name = name.as_os_str().as_bytes();
        let mut records = exact_time(&metadata);
        records.extend(map.records(name));
        extensions(builder, records)?;
        // GNU tar looks for maps only behind headers of POSIX.
        let size = map.encode().len() as u64 + map.stored();
        let mut header = filled(Header::new_ustar(), &metadata, EntryType::Regular, size);
        let stand_in = microvm_archive::sparse_map::stand_in(name);
        let data = sparse::Data::new(&file, &map, path);
        return builder.append_data(&mut header, OsStr::from_bytes(&stand_in), data);
    }
    time(builder, &metadata)?;
    let mut header = header(&metadata, EntryType::Regular, metadata.len());
    // A file that grows or shrinks meanwhile must not shift what comes after it.
    let data = Exactly { file: ExtentReader::new(file), left: metadata.len(), path };
    builder.append_data(&mut header, name, data)
}

fn header(metadata: &Metadata, kind: EntryType, size: u64) -> Header {
    filled(Header::new_gnu(), metadata, kind, size)
}

fn filled(mut header: Header, metadata: &Metadata, kind: EntryType, size: u64) -> Header {
    header.set_entry_type(kind);
    header.set_mode(metadata.mode() & 0o7777);
    header.set_uid(0);
    header.set_gid(0);
    // A header holds no time before 1970: that stands in the extension before it.
    header.set_mtime(u64::try_from(metadata.mtime()).unwrap_or(0));
    header.set_size(size);
    header
}

fn shortened(path: &Path) -> io::Error {
    io::Error::other(format!("{} became shorter while it was read", path.display()))
}

/// Exactly as many bytes as were announced.
struct Exactly<'a> {
    file: ExtentReader,
    left: u64,
    path: &'a Path,
}

impl Read for Exactly<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.left == 0 {
            return Ok(0);
        }
        let room = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        let length = self.file.read(&mut buffer[..room])?;
        if length == 0 {
            return Err(shortened(self.path));
        }
        self.left -= length as u64;
        Ok(length)
    }
}
