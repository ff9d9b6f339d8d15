//! Trust in the holes of files.

use std::fs::OpenOptions;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};

use camino::Utf8Path;
use microvm_durable::error::io_error;
use microvm_durable::files::remove_all;
use microvm_ports::StorageError;
use microvm_ports::branch::{PAGE_SIZE, PageRange};

use super::page_file::PAGE;
use super::view::extents;

/// The page that is written to find out, and the pages of the file around it: 1 MiB, more than blocks of file systems have.
const WRITTEN: u64 = 130;
const PAGES: u64 = 256;

/// Removes a file when it is dropped.
struct Removed<'a>(&'a Utf8Path);

impl Drop for Removed<'_> {
    fn drop(&mut self) {
        // It is in the directory of a VM, and goes with that.
        let _ = remove_all(self.0);
    }
}

/// True if the file system tells holes page by page: a file at `probe`, which must not be there, has one page written and
/// nothing else. With larger blocks, or where holes are not told at all (`lseek(2)`: the whole file is data), pages that
/// were not written would pass as zeros that were.
pub(crate) fn are_exact(probe: &Utf8Path) -> Result<bool, StorageError> {
    let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(probe);
    let file = file.map_err(io_error("creating", probe))?;
    let _removed = Removed(probe);
    file.set_len(PAGES * PAGE).map_err(io_error("growing", probe))?;
    file.write_all_at(&[1; PAGE_SIZE], WRITTEN * PAGE).map_err(io_error("writing", probe))?;
    Ok(extents(&file, probe)? == [PageRange { first: WRITTEN, count: 1 }])
}
