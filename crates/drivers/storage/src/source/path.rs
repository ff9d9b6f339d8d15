//! An image from a path: finds out by looking what is there.

use std::fs::File;

use camino::Utf8Path;
use microvm_ports::StorageError;

use super::builder::Builder;
use super::compression::decompress;
use super::tar_image::{Whiteouts, add_tar};
use super::tar_reader::TarReader;
use super::{docker, folder, oci};
use crate::base::error::{bad_input, io_error};
use crate::base::files::canonical;
use crate::base::workspace::Workspace;
use crate::images::refuse_empty;

/// What an archive is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Archive {
    /// A tree of files.
    Tree,
    /// An image in pieces: OCI layout or `docker save`.
    Image,
}

/// Takes in whatever is at `path`; returns what it was, in a word or two.
pub(crate) fn add_path(
    builder: &mut Builder,
    workspace: &Workspace,
    path: &Utf8Path,
) -> Result<&'static str, StorageError> {
    if !path.is_absolute() {
        return Err(bad_input(path.as_str(), "its path must be absolute"));
    }
    let metadata = path.metadata().map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => bad_input(path.as_str(), "there is nothing at this path"),
        _ => io_error("examining", path)(error),
    })?;
    if metadata.is_dir() {
        let path = canonical(path)?;
        if path.join("oci-layout").is_file() {
            oci::add_layout(builder, path.as_str(), &path)?;
            return Ok("OCI layout");
        }
        builder.progress.step("reading the folder");
        folder::add_folder(builder, &path)?;
        refuse_empty(builder, path.as_str())?;
        return Ok("folder");
    }
    if !metadata.is_file() {
        return Err(bad_input(path.as_str(), "it is neither a folder nor a file"));
    }
    builder.progress.step("reading the archive");
    match look(builder, path)? {
        Archive::Tree => {
            add_tar(builder, path.as_str(), decompress(path.as_str(), open(path)?)?, Whiteouts::Plain)?;
            refuse_empty(builder, path.as_str())?;
            Ok("tar")
        }
        Archive::Image => docker::add_archive(builder, workspace, path),
    }
}

pub(super) fn open(path: &Utf8Path) -> Result<File, StorageError> {
    File::open(path).map_err(io_error("opening", path))
}

/// Walks over the names of an archive until they cannot be those of an image in pieces, or its index is found.
fn look(builder: &Builder, path: &Utf8Path) -> Result<Archive, StorageError> {
    let reader = builder.cancel.reader(decompress(path.as_str(), open(path)?)?);
    let mut tar = TarReader::new(path.as_str(), reader);
    while let Some(entry) = tar.next_entry()? {
        let name = entry.path.strip_prefix(b"./").unwrap_or(&entry.path);
        match name {
            b"manifest.json" | b"oci-layout" => return Ok(Archive::Image),
            b"" | b"index.json" | b"repositories" => {}
            _ if docker::is_part(name) => {}
            _ => return Ok(Archive::Tree),
        }
    }
    Ok(Archive::Tree)
}
