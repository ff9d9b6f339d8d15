//! Puts files of a context, and directories, into an image.

use std::collections::BTreeMap;
use std::fs::Metadata;
use std::io::Read as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};

use microvm_durable::cancel::Cancel;
use microvm_durable::error::bad_input;
use microvm_ports::StorageError;
use microvm_ports::storage::{CopyStep, DirectoryStep, Placement};

use super::owner::{self, Unsaid};
use super::walk::{Context, Entry, Source, push};
use crate::erofs::{Attributes, Kind};
use crate::source::builder::Builder;
use crate::source::compression::Compression;
use crate::source::folder::over_directory;

/// Mode of directories that nobody says one of.
const DIRECTORY: u16 = 0o755;
/// Where a tar archive says that it is one.
const TAR_MAGIC: usize = 257;

/// Puts everything in, in order.
pub(crate) fn add(builder: &mut Builder, placements: &[Placement]) -> Result<(), StorageError> {
    placements.iter().try_for_each(|placement| match placement {
        Placement::Copy(step) => add_copy(builder, step),
        Placement::Directory(step) => {
            check_directory(step)?;
            builder.progress.step(step.title.clone());
            let owner = owner::find(builder, &step.title, &step.owner, Unsaid::OfUser)?;
            make_directory(builder, &step.title, step.path.as_bytes(), owner)
        }
    })
}

/// Finds what is wrong with a step, without reading contents.
pub(super) fn check(step: &CopyStep, cancel: &Cancel) -> Result<(), StorageError> {
    mode(step)?;
    check_absolute(&step.title, &step.destination)?;
    let context = Context::open(step, cancel)?;
    let sources = context.sources()?;
    if sources.len() > 1 && !step.destination.ends_with('/') {
        return Err(bad_input(
            &*step.title,
            format!(
                "{} sources go into a directory: `{}` must end with a slash",
                sources.len(),
                step.destination
            ),
        ));
    }
    for source in &sources {
        let file_type = source.metadata.file_type();
        if !file_type.is_dir() && !file_type.is_file() {
            return Err(neither(step, &source.path));
        }
        if step.refuse_archives && file_type.is_file() {
            context.walk(source, |entry| refuse_archive(&context, step, source, entry))?;
        }
    }
    Ok(())
}

/// Refuses a directory that no image can have.
pub(super) fn check_directory(step: &DirectoryStep) -> Result<(), StorageError> {
    check_absolute(&step.title, &step.path)
}

fn check_absolute(what: &str, path: &str) -> Result<(), StorageError> {
    if path.starts_with('/') {
        return Ok(());
    }
    Err(bad_input(what, format!("`{}` is not an absolute path in the image", path.escape_debug())))
}

fn mode(step: &CopyStep) -> Result<Option<u16>, StorageError> {
    let read = |text: &String| {
        u16::from_str_radix(text, 8).ok().filter(|mode| *mode <= 0o7777).ok_or_else(|| {
            bad_input(
                &*step.title,
                format!("the mode `{}` is not an octal number up to 7777", text.escape_debug()),
            )
        })
    };
    step.mode.as_ref().map(read).transpose()
}

fn neither(step: &CopyStep, path: &[u8]) -> StorageError {
    let shown = String::from_utf8_lossy(path).escape_debug().to_string();
    bad_input(&*step.title, format!("`{shown}` is neither a file, a folder nor a link"))
}

fn refuse_archive(
    context: &Context<'_>,
    step: &CopyStep,
    source: &Source,
    entry: &Entry<'_>,
) -> Result<(), StorageError> {
    let mut start = Vec::new();
    let file = context.read(source, entry)?;
    file.take(512).read_to_end(&mut start).map_err(|error| bad_input(&*step.title, error.to_string()))?;
    let is_tar = start.get(TAR_MAGIC..).is_some_and(|rest| rest.starts_with(b"ustar"));
    if is_tar || Compression::of(&start) != Compression::None {
        let shown = String::from_utf8_lossy(&source.path).escape_debug().to_string();
        return Err(bad_input(
            &*step.title,
            format!("`{shown}` is an archive, which ADD would unpack: use COPY, and unpack it with RUN"),
        ));
    }
    Ok(())
}

fn add_copy(builder: &mut Builder, step: &CopyStep) -> Result<(), StorageError> {
    let cancel = builder.cancel.clone();
    check(step, &cancel)?;
    builder.progress.step(step.title.clone());
    let context = Context::open(step, &cancel)?;
    let sources = context.sources()?;
    let new =
        New { owner: owner::find(builder, &step.title, &step.owner, Unsaid::SameNumber)?, mode: mode(step)? };
    let destination = step.destination.trim_end_matches('/').as_bytes();
    let into =
        sources.len() > 1 || step.destination.ends_with('/') || builder.tree.leads_to_directory(destination);
    for source in &sources {
        let mut top = destination.to_vec();
        if source.metadata.is_dir() {
            make_directory(builder, &step.title, &top, new.owner)?;
        } else if into {
            let name = source.path.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
            push(&mut top, name);
        }
        context.walk(source, |entry| {
            let mut inside = top.clone();
            push(&mut inside, entry.path);
            add_entry(builder, &context, step, (source, entry), &inside, &new)
        })?;
    }
    Ok(())
}

/// What is said of everything that a step puts in.
struct New {
    owner: (u32, u32),
    mode: Option<u16>,
}

fn add_entry(
    builder: &mut Builder,
    context: &Context<'_>,
    step: &CopyStep,
    (source, entry): (&Source, &Entry<'_>),
    inside: &[u8],
    new: &New,
) -> Result<(), StorageError> {
    let metadata = entry.metadata;
    let file_type = metadata.file_type();
    if file_type.is_socket() {
        // It means nothing without its owner.
        return Ok(());
    }
    if file_type.is_dir() && builder.tree.leads_to_directory(inside) {
        return Ok(());
    }
    if let Some(at) = inside.iter().rposition(|byte| *byte == b'/') {
        make_directory(builder, &step.title, &inside[..at], new.owner)?;
    }
    // A link may take the place of a link, never that of a directory.
    let replaces = if file_type.is_symlink() {
        builder.tree.is_directory(inside)
    } else {
        builder.tree.leads_to_directory(inside)
    };
    if replaces {
        return Err(over_directory(&step.title, inside));
    }
    let kind = if file_type.is_dir() {
        Kind::Directory(BTreeMap::new())
    } else if file_type.is_symlink() {
        Kind::Symlink(context.target(source, entry)?.into())
    } else if file_type.is_file() {
        let file = context.read(source, entry)?;
        let size = file.metadata().map_err(|error| bad_input(&*step.title, error.to_string()))?.len();
        Kind::File(builder.file(&step.title, &mut file.take(size), size, None)?)
    } else {
        let mut path = source.path.clone();
        push(&mut path, entry.path);
        return Err(neither(step, &path));
    };
    builder.insert(&step.title, inside, attributes(metadata, new), kind)
}

/// Those of the host without what it means to other users there: owner, set-id bits, extended attributes.
fn attributes(metadata: &Metadata, new: &New) -> Attributes {
    let own = u16::try_from(metadata.mode() & if metadata.is_dir() { 0o1777 } else { 0o777 }).unwrap_or(0);
    let mode = if metadata.is_symlink() { 0o777 } else { new.mode.unwrap_or(own) };
    Attributes {
        mode,
        uid: new.owner.0,
        gid: new.owner.1,
        modified: metadata.mtime(),
        modified_ns: u32::try_from(metadata.mtime_nsec()).unwrap_or(0),
        xattrs: Vec::new(),
    }
}

/// Makes a directory, and those above it, where there is none.
fn make_directory(
    builder: &mut Builder,
    what: &str,
    path: &[u8],
    (uid, gid): (u32, u32),
) -> Result<(), StorageError> {
    let ends = path.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(at, _)| at);
    for end in ends.chain([path.len()]) {
        let part = &path[..end];
        if builder.tree.leads_to_directory(part) {
            continue;
        }
        if builder.tree.find(part).is_ok_and(|found| found.is_some()) {
            let shown = String::from_utf8_lossy(part).escape_debug().to_string();
            return Err(bad_input(what, format!("`{shown}` is in the image, and is no directory")));
        }
        let attributes = Attributes { uid, gid, ..Attributes::root(DIRECTORY) };
        builder.insert(what, part, attributes, Kind::Directory(BTreeMap::new()))?;
    }
    Ok(())
}
