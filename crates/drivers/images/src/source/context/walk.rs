//! Opens a context, finds sources in it and walks over them, without leaving it.

use std::fs::{File, Metadata};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use camino::Utf8Path;
use microvm_durable::cancel::Cancel;
use microvm_durable::error::{bad_input, io_error};
use microvm_ports::StorageError;
use microvm_ports::storage::CopyStep;
use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::ignored::Ignored;
use super::pattern::{Pattern, SPECIAL};

/// Times that an opening is tried again which another process disturbed.
const TRIES: usize = 16;
/// Most entries below one source.
const ENTRIES_MAX: usize = 2_000_000;
/// Entries looked at in search of the sources of one step.
const SEARCHED_MAX: usize = 200_000;

/// A context that was opened.
pub(super) struct Context<'a> {
    root: OwnedFd,
    step: &'a CopyStep,
    ignored: Ignored,
    cancel: &'a Cancel,
}

/// A source that was found: a file, a folder, or what a link of the context leads to.
pub(super) struct Source {
    /// Path below the context, as it is called there; empty for the context itself.
    pub(super) path: Vec<u8>,
    /// Where that leads, links followed: what is ignored there is ignored by any name.
    real: Vec<u8>,
    pub(super) metadata: Metadata,
}

/// Something below a source, or a source that is a file.
pub(super) struct Entry<'a> {
    /// Path below the source; empty for a source that is a file.
    pub(super) path: &'a [u8],
    pub(super) metadata: &'a Metadata,
    place: &'a OwnedFd,
    /// True if `place` is the entry itself.
    itself: bool,
}

impl<'a> Context<'a> {
    /// Opens the context of a step.
    pub(super) fn open(step: &'a CopyStep, cancel: &'a Cancel) -> Result<Self, StorageError> {
        let path = Utf8Path::new(&step.context);
        if !path.is_absolute() {
            return Err(bad_input(&*step.title, format!("the context `{path}` is not an absolute path")));
        }
        let ignored = Ignored::new(&step.title, &step.ignored)?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root =
            rustix::fs::open(path.as_std_path(), flags, Mode::empty()).map_err(|error| match error {
                Errno::NOENT | Errno::NOTDIR => {
                    bad_input(&*step.title, format!("the context {path} is no folder"))
                }
                _ => io_error("opening", path)(error.into()),
            })?;
        Ok(Self { root, step, ignored, cancel })
    }

    /// The sources of the step, each at least once; those of a pattern in the order of their names.
    pub(super) fn sources(&self) -> Result<Vec<Source>, StorageError> {
        let mut found = Vec::new();
        for text in &self.step.sources {
            let before = found.len();
            self.search(text, &mut found)?;
            if found.len() == before {
                let hidden = if self.ignored.takes_back() || !self.step.ignored.is_empty() {
                    ", or is left out by the ignore file"
                } else {
                    ""
                };
                return Err(self.bad(text, &format!("is not in the context {}{hidden}", self.step.context)));
            }
        }
        Ok(found)
    }

    fn bad(&self, source: &str, why: &str) -> StorageError {
        bad_input(&*self.step.title, format!("`{}` {why}", source.escape_debug()))
    }

    /// Follows one source part by part; only parts that are patterns make a folder be read.
    fn search(&self, text: &str, found: &mut Vec<Source>) -> Result<(), StorageError> {
        let mut parts: Vec<&str> = Vec::new();
        for part in text.split('/').filter(|part| !part.is_empty() && *part != ".") {
            if part != ".." {
                parts.push(part);
            } else if parts.pop().is_none() {
                return Err(self.bad(text, "leaves the context: name files inside of it"));
            }
        }
        let mut paths: Vec<Vec<u8>> = vec![Vec::new()];
        let mut searched = 0;
        let mut listed = false;
        for part in parts {
            self.cancel.check()?;
            listed = part.contains(SPECIAL);
            if !listed {
                paths.iter_mut().for_each(|path| push(path, part.as_bytes()));
                continue;
            }
            let pattern =
                Pattern::new(part).map_err(|why| self.bad(text, &format!("cannot be used: {why}")))?;
            let mut next = Vec::new();
            for path in &paths {
                let Some((folder, opened)) = self.look(text, path)? else { continue };
                if !folder.metadata.is_dir() {
                    continue;
                }
                let names = self.names(&opened, path)?;
                searched += names.len();
                if searched > SEARCHED_MAX {
                    return Err(
                        self.bad(text, &format!("makes more than {SEARCHED_MAX} entries be looked at"))
                    );
                }
                for name in names.into_iter().filter(|name| pattern.matches(name)) {
                    let mut path = path.clone();
                    push(&mut path, &name);
                    next.push(path);
                }
            }
            paths = next;
        }
        for path in paths {
            let Some((source, _)) = self.look(text, &path)? else {
                // What a pattern found is there, and must not be missing in silence.
                if listed && !self.ignored.leaves_out(&path) {
                    let shown = String::from_utf8_lossy(&path).into_owned();
                    return Err(self.bad(&shown, "is a link that leads nowhere"));
                }
                continue;
            };
            let out = self.ignored.leaves_out(&path) || self.ignored.leaves_out(&source.real);
            if !out || (source.metadata.is_dir() && self.holds_some(&source)?) {
                found.push(source);
            }
        }
        Ok(())
    }

    /// True if something below a folder that is left out is taken back in.
    fn holds_some(&self, source: &Source) -> Result<bool, StorageError> {
        let mut some = false;
        if self.ignored.takes_back() {
            self.walk(source, |_| {
                some = true;
                Ok(())
            })?;
        }
        Ok(some)
    }

    /// What is at a path below the context, links inside of it followed.
    fn look(&self, text: &str, path: &[u8]) -> Result<Option<(Source, OwnedFd)>, StorageError> {
        let opened = match beneath(&self.root, path, OFlags::PATH, ResolveFlags::empty()) {
            Ok(opened) => opened,
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(None),
            Err(Errno::XDEV) => return Err(self.bad(text, "leads out of the context through a link")),
            Err(Errno::LOOP) => return Err(self.bad(text, "leads through too many links")),
            Err(error) => return Err(self.failed("opening", path, error)),
        };
        let metadata = self.metadata(&opened, path)?;
        let real = self.real(&opened, path)?;
        Ok(Some((Source { path: path.to_vec(), real, metadata }, opened)))
    }

    /// Path below the context of what was opened.
    fn real(&self, opened: &OwnedFd, path: &[u8]) -> Result<Vec<u8>, StorageError> {
        let of = |descriptor: &OwnedFd| {
            let number = std::os::fd::AsRawFd::as_raw_fd(descriptor);
            std::fs::read_link(format!("/proc/self/fd/{number}"))
                .map_err(|error| self.io("examining", path, error))
        };
        let (root, whole) = (of(&self.root)?, of(opened)?);
        let below = whole
            .strip_prefix(&root)
            .map_err(|_| self.bad(&String::from_utf8_lossy(path), "changed while it was read"))?;
        Ok(below.as_os_str().as_bytes().to_vec())
    }

    /// Calls `visit` for everything below a source, parents first, in an order that does not change; for a file, once.
    pub(super) fn walk(
        &self,
        source: &Source,
        mut visit: impl FnMut(&Entry<'_>) -> Result<(), StorageError>,
    ) -> Result<(), StorageError> {
        let shown = String::from_utf8_lossy(&source.path).into_owned();
        // Opened anew, one at a time: a pattern may have found more than may be open at once.
        let Some((now, opened)) = self.look(&shown, &source.path)? else {
            return Err(self.bad(&shown, "changed while it was read"));
        };
        if now.real != source.real || now.metadata.file_type() != source.metadata.file_type() {
            return Err(self.bad(&shown, "changed while it was read"));
        }
        if !now.metadata.is_dir() {
            let entry = Entry { path: b"", metadata: &now.metadata, place: &opened, itself: true };
            return visit(&entry);
        }
        let mut visited = 0_usize;
        let mut pending: Vec<Vec<u8>> = vec![Vec::new()];
        while let Some(below) = pending.pop() {
            self.cancel.check()?;
            visited += 1;
            if visited + pending.len() > ENTRIES_MAX {
                return Err(self.bad(&shown, &format!("has more than {ENTRIES_MAX} entries")));
            }
            let mut whole = source.real.clone();
            push(&mut whole, &below);
            // The source itself is visited as its content.
            if !below.is_empty() {
                let out = self.ignored.leaves_out(&whole);
                let entry =
                    beneath(&opened, &below, OFlags::PATH | OFlags::NOFOLLOW, ResolveFlags::NO_SYMLINKS)
                        .map_err(|error| self.failed("opening", &whole, error))?;
                let metadata = self.metadata(&entry, &whole)?;
                if !out {
                    visit(&Entry { path: &below, metadata: &metadata, place: &opened, itself: false })?;
                }
                if !metadata.is_dir() || (out && !self.ignored.takes_back()) {
                    continue;
                }
            }
            let folder =
                beneath(&opened, &below, OFlags::RDONLY | OFlags::DIRECTORY, ResolveFlags::NO_SYMLINKS)
                    .map_err(|error| self.failed("listing", &whole, error))?;
            for name in self.names(&folder, &whole)?.into_iter().rev() {
                let mut path = below.clone();
                push(&mut path, &name);
                pending.push(path);
            }
        }
        Ok(())
    }

    /// Names in a folder, sorted.
    fn names(&self, folder: &OwnedFd, path: &[u8]) -> Result<Vec<Vec<u8>>, StorageError> {
        let failed = |error| self.failed("listing", path, error);
        let mut names = Vec::new();
        // Opened anew: what is here may be a descriptor of a place only.
        let folder = beneath(folder, b"", OFlags::RDONLY | OFlags::DIRECTORY, ResolveFlags::empty())
            .map_err(failed)?;
        for entry in rustix::fs::Dir::new(folder).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let name = entry.file_name().to_bytes();
            if name != b"." && name != b".." {
                names.push(name.to_vec());
            }
        }
        names.sort_unstable();
        Ok(names)
    }

    fn metadata(&self, opened: &OwnedFd, path: &[u8]) -> Result<Metadata, StorageError> {
        let file = File::from(opened.try_clone().map_err(|error| self.io("examining", path, error))?);
        file.metadata().map_err(|error| self.io("examining", path, error))
    }

    /// Opens a regular file for reading.
    pub(super) fn read(&self, source: &Source, entry: &Entry<'_>) -> Result<File, StorageError> {
        let mut whole = source.path.clone();
        push(&mut whole, entry.path);
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let opened = if entry.itself {
            // The one that was found, whatever has its name now.
            let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(entry.place));
            rustix::fs::open(path, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty())
        } else {
            beneath(entry.place, entry.path, flags, ResolveFlags::NO_SYMLINKS)
        };
        let file = File::from(opened.map_err(|error| self.failed("opening", &whole, error))?);
        let metadata = file.metadata().map_err(|error| self.io("examining", &whole, error))?;
        // Another one has its name by now: its owner and mode would be those of the first, and its content its own.
        let same = (metadata.dev(), metadata.ino()) == (entry.metadata.dev(), entry.metadata.ino());
        if !same || !metadata.is_file() {
            return Err(self.bad(&String::from_utf8_lossy(&whole), "changed while it was read"));
        }
        Ok(file)
    }

    /// Target of a link.
    pub(super) fn target(&self, source: &Source, entry: &Entry<'_>) -> Result<Vec<u8>, StorageError> {
        let mut whole = source.path.clone();
        push(&mut whole, entry.path);
        let link =
            beneath(entry.place, entry.path, OFlags::PATH | OFlags::NOFOLLOW, ResolveFlags::NO_SYMLINKS);
        let link = link.map_err(|error| self.failed("opening", &whole, error))?;
        let target = rustix::fs::readlinkat(&link, "", Vec::new());
        Ok(target.map_err(|error| self.failed("reading the link", &whole, error))?.into_bytes())
    }

    fn failed(&self, action: &'static str, path: &[u8], error: Errno) -> StorageError {
        self.io(action, path, error.into())
    }

    fn io(&self, action: &'static str, path: &[u8], error: std::io::Error) -> StorageError {
        let path = Utf8Path::new(&self.step.context).join(&*String::from_utf8_lossy(path));
        io_error(action, &path)(error)
    }
}

/// Adds a part to a path.
pub(super) fn push(path: &mut Vec<u8>, part: &[u8]) {
    if !path.is_empty() && !part.is_empty() {
        path.push(b'/');
    }
    path.extend_from_slice(part);
}

/// Opens what is at `path` below `place`; an empty path is the place itself.
fn beneath(place: &OwnedFd, path: &[u8], flags: OFlags, further: ResolveFlags) -> Result<OwnedFd, Errno> {
    let path = if path.is_empty() { Path::new(".") } else { Path::new(std::ffi::OsStr::from_bytes(path)) };
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS | further;
    let mut tries = 0;
    loop {
        // EAGAIN: something was renamed meanwhile, so that the kernel cannot tell whether a path leads out.
        match rustix::fs::openat2(place, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve) {
            Err(Errno::AGAIN) if tries < TRIES => tries += 1,
            result => return result,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Read as _;

    use super::*;

    #[test]
    fn what_takes_the_place_of_a_file_while_the_context_is_read_is_refused() {
        for with in ["file", "folder", "link", "fifo", "nothing"] {
            for single in [false, true] {
                let folder = tempfile::tempdir().unwrap();
                let context = folder.path().join("context");
                fs::create_dir_all(context.join("src")).unwrap();
                fs::write(context.join("src/a"), "first").unwrap();
                fs::write(folder.path().join("secret"), "secret").unwrap();
                let step = CopyStep {
                    title: "line 7: COPY".to_owned(),
                    context: context.to_str().unwrap().to_owned(),
                    sources: vec![if single { "src/a" } else { "src" }.to_owned()],
                    ..CopyStep::default()
                };
                let cancel = Cancel::default();
                let opened = Context::open(&step, &cancel).unwrap();
                let source = opened.sources().unwrap().remove(0);
                let mut read = None;
                let walked = opened.walk(&source, |entry| {
                    let path = context.join("src/a");
                    fs::rename(&path, folder.path().join("gone")).unwrap();
                    match with {
                        "file" => fs::write(&path, "other").unwrap(),
                        "folder" => fs::create_dir(&path).unwrap(),
                        "link" => std::os::unix::fs::symlink(folder.path().join("secret"), &path).unwrap(),
                        "fifo" => {
                            let (kind, mode) = (rustix::fs::FileType::Fifo, Mode::RUSR);
                            rustix::fs::mknodat(rustix::fs::CWD, &path, kind, mode, 0).unwrap();
                        }
                        _ => {}
                    }
                    let mut text = String::new();
                    opened.read(&source, entry)?.read_to_string(&mut text).unwrap();
                    read = Some(text);
                    Ok(())
                });
                if single {
                    // It was opened when it was found: what has its name now does not matter.
                    assert_eq!((walked.is_ok(), read.as_deref()), (true, Some("first")), "{with}");
                } else {
                    let refused = walked.unwrap_err().to_string();
                    assert!(refused.contains("src/a"), "{with}: {refused}");
                    assert_eq!(read, None, "{with}");
                }
            }
        }
    }
}
