//! Files and folders that a recipe puts on top of an image.

use std::fs::{File, Metadata};
use std::os::unix::fs::MetadataExt as _;

use camino::Utf8Path;
use microvm_durable::error::{bad_input, io_error};
use microvm_ports::StorageError;
use microvm_ports::storage::RecipeFile;

use super::builder::Builder;
use super::folder::{self, Owners};
use crate::erofs::{Attributes, Kind};

/// Mode of a file of which nothing says one.
const MODE: u16 = 0o644;

/// Content that an entry of a recipe puts in.
enum Content<'a> {
    Text(&'a str),
    File(&'a Utf8Path, Metadata),
    Folder(&'a Utf8Path),
}

/// Finds what is wrong with the entries, without reading contents.
pub(crate) fn check_files(files: &[RecipeFile]) -> Result<(), StorageError> {
    files.iter().try_for_each(|file| look(file).map(drop))
}

/// Puts the entries in; all of it belongs to root. A relative `source` is relative to the working directory; callers make it
/// absolute first.
pub(crate) fn add_files(builder: &mut Builder, files: &[RecipeFile]) -> Result<(), StorageError> {
    for file in files {
        let (content, mode) = look(file)?;
        let what = name(file);
        let (data, own_mode) = match content {
            Content::Folder(source) => {
                builder.progress.step(format!("putting in {source}"));
                folder::add_folder_at(
                    builder,
                    source,
                    file.path.trim_end_matches('/').as_bytes(),
                    Owners::Root,
                )?;
                continue;
            }
            Content::Text(text) => (builder.spool.store(text.as_bytes())?, MODE),
            Content::File(source, metadata) => {
                let mut input = File::open(source).map_err(io_error("opening", source))?;
                let mode = u16::try_from(metadata.mode() & 0o777).unwrap_or(MODE);
                (builder.file(&what, &mut input, metadata.len(), None)?, mode)
            }
        };
        if builder.tree.leads_to_directory(file.path.as_bytes()) {
            return Err(folder::over_directory(&what, file.path.as_bytes()));
        }
        let attributes = Attributes::root(mode.unwrap_or(own_mode));
        builder.insert(&what, file.path.as_bytes(), attributes, Kind::File(data))?;
    }
    Ok(())
}

fn name(file: &RecipeFile) -> String {
    format!("the recipe's file `{}`", file.path.escape_debug())
}

fn look(file: &RecipeFile) -> Result<(Content<'_>, Option<u16>), StorageError> {
    let what = name(file);
    if !file.path.starts_with('/') {
        return Err(bad_input(what, "its path in the image must be absolute"));
    }
    let mode = file.mode.as_deref().map(|text| {
        u16::from_str_radix(text, 8).ok().filter(|mode| *mode <= 0o7777).ok_or_else(|| {
            bad_input(&*what, format!("the mode `{}` is not an octal number up to 7777", text.escape_debug()))
        })
    });
    let mode = mode.transpose()?;
    let content = match (&file.content, &file.source) {
        (Some(content), None) => Content::Text(content),
        (None, Some(source)) => {
            let source = Utf8Path::new(source);
            let metadata = source.metadata().map_err(|error| match error.kind() {
                std::io::ErrorKind::NotFound => bad_input(&*what, format!("{source} is not there")),
                _ => io_error("examining", source)(error),
            })?;
            if metadata.is_dir() {
                if mode.is_some() {
                    return Err(bad_input(
                        what,
                        format!("{source} is a folder: what is in it keeps its modes"),
                    ));
                }
                return Ok((Content::Folder(source), None));
            }
            if !metadata.is_file() {
                return Err(bad_input(what, format!("{source} is neither a file nor a folder")));
            }
            Content::File(source, metadata)
        }
        _ => return Err(bad_input(what, "give exactly one of `content` and `source`")),
    };
    if file.path.ends_with('/') {
        return Err(bad_input(what, "its path must name a file"));
    }
    Ok((content, mode))
}
