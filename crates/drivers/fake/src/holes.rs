//! Files with holes.

use std::fs::File;

use camino::Utf8Path;
use microvm_ports::branch::PAGE_SIZE;
use rustix::fs::{SeekFrom, seek};

/// Numbers of the pages of a file that are not holes.
pub(crate) fn pages(path: &Utf8Path) -> std::io::Result<Vec<u64>> {
    const PAGE: u64 = PAGE_SIZE as u64;
    let file = File::open(path)?;
    let (mut at, mut pages) = (0u64, Vec::new());
    loop {
        let data = match seek(&file, SeekFrom::Data(at)) {
            Ok(data) => data,
            // Nothing but a hole follows.
            Err(rustix::io::Errno::NXIO) => return Ok(pages),
            Err(error) => return Err(error.into()),
        };
        at = seek(&file, SeekFrom::Hole(data))?;
        pages.extend(data / PAGE..at.div_ceil(PAGE));
    }
}
