//! Writes packed pages to a file.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;

use camino::Utf8Path;
use microvm_durable::cancel::Cancel;
use microvm_durable::error::{bad_input, io_error};
use microvm_ports::{Progress, StorageError};

use super::difference::chunks;
use super::page_file::{Content, PAGE, Run, content_pages, content_start, encode_index, fits};
use super::part::{Part, PartHasher};
use super::view::{View, byte};

/// Length of the file that [`write_pages`] makes.
pub(crate) fn packed_length(runs: &[Run]) -> u64 {
    content_start(runs.len() as u64) + content_pages(runs) * PAGE
}

/// Writes some pages of a view to a new file and syncs it, hashing them on the way.
pub(crate) fn write_pages(
    path: &Utf8Path,
    view: &View,
    runs: &[Run],
    cancel: &Cancel,
    progress: &Progress,
) -> Result<Part, StorageError> {
    if !fits(runs.len()) {
        return Err(bad_input("the memory", format!("{} runs of changed pages are too many", runs.len())));
    }
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o400)
        .open(path)
        .map_err(io_error("creating", path))?;
    let length = packed_length(runs);
    let mut hasher = PartHasher::new(length);
    let mut write = |bytes: &[u8]| {
        hasher.update(bytes);
        file.write_all(bytes).map_err(io_error("writing", path))
    };
    write(&encode_index(view.pages, runs))?;
    let mut buffer = vec![0; byte(super::difference::CHUNK)];
    let mut done = 0;
    for range in runs.iter().filter(|run| run.content != Content::Zero).flat_map(|run| chunks(run.range)) {
        cancel.check()?;
        let buffer = &mut buffer[..byte(range.count)];
        view.read(range.first, buffer)?;
        write(buffer)?;
        done += buffer.len() as u64;
        progress.advance("writing the memory", done, Some(length));
    }
    file.sync_all().map_err(io_error("syncing", path))?;
    Ok(hasher.finish())
}
