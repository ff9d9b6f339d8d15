//! Files that a recipe puts on top of an image.

use std::fs::File;

use camino::Utf8Path;
use microvm_durable::error::{bad_input, io_error};
use microvm_ports::StorageError;
use microvm_ports::storage::RecipeFile;

use super::builder::Builder;
use crate::erofs::{Attributes, Kind};

/// Mode of a file that says nothing about it.
const MODE: u16 = 0o644;

/// Puts the files in. A `source` that is relative is relative to the working directory; callers make it absolute first.
pub(crate) fn add_files(builder: &mut Builder, files: &[RecipeFile]) -> Result<(), StorageError> {
    for file in files {
        let what = format!("the recipe's file `{}`", file.path.escape_debug());
        if !file.path.starts_with('/') || file.path.ends_with('/') {
            return Err(bad_input(what, "its path must be absolute and name a file"));
        }
        let mode = match file.mode.as_deref() {
            None => MODE,
            Some(text) => {
                u16::from_str_radix(text, 8).ok().filter(|mode| *mode <= 0o7777).ok_or_else(|| {
                    bad_input(
                        &*what,
                        format!("the mode `{}` is not an octal number up to 7777", text.escape_debug()),
                    )
                })?
            }
        };
        let data = match (&file.content, &file.source) {
            (Some(content), None) => builder.spool.store(content.as_bytes())?,
            (None, Some(source)) => {
                let source = Utf8Path::new(source);
                let mut input = File::open(source).map_err(|error| match error.kind() {
                    std::io::ErrorKind::NotFound => bad_input(&*what, format!("{source} is not there")),
                    _ => io_error("opening", source)(error),
                })?;
                let metadata = input.metadata().map_err(io_error("examining", source))?;
                if !metadata.is_file() {
                    return Err(bad_input(what, format!("{source} is not a file")));
                }
                builder.file(&what, &mut input, metadata.len(), None)?
            }
            _ => return Err(bad_input(what, "give exactly one of `content` and `source`")),
        };
        builder.insert(&what, file.path.as_bytes(), Attributes::root(mode), Kind::File(data))?;
    }
    Ok(())
}
