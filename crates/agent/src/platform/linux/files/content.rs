//! The content of an open file as frames: data where there is data, counts where there are holes.

use std::fs::File;
use std::os::fd::AsFd as _;
use std::path::Path;

use microvm_protocol::frame::GUEST_BULK;
use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;

use super::ahead;
use super::path::failed;
use crate::core::bulk::Sender;
use crate::core::failure::{AgentError, AgentResult};

impl Sender<'_> {
    /// Sends bytes `from..until` of a file (`until` may lie beyond its end); returns where it stopped.
    pub(super) fn file(&self, file: &File, path: &Path, from: u64, until: u64) -> AgentResult<u64> {
        let size = file.metadata().map_err(failed("look at", path))?.len();
        let mut position = from;
        while position < until {
            // Pseudo files have no holes, and no size to believe.
            let data = match seek(file.as_fd(), SeekFrom::Data(position)) {
                Ok(data) => data,
                Err(Errno::NXIO) if position < size => size,
                Err(_) => position,
            };
            if data > position {
                let end = data.min(until);
                self.zeros(end - position)?;
                position = end;
                continue;
            }
            let hole = seek(file.as_fd(), SeekFrom::Hole(position)).unwrap_or(u64::MAX);
            // Some file systems answer with where they were asked: then all is data.
            let hole = if hole <= position { u64::MAX } else { hole };
            if self.extent(file, path, &mut position, hole.min(until))? {
                break;
            }
        }
        Ok(position)
    }

    /// Sends one stretch of data; `true` at the end of the file.
    fn extent(&self, file: &File, path: &Path, position: &mut u64, end: u64) -> AgentResult<bool> {
        self.ahead(file, path, position, end)?;
        while *position < end {
            let wanted = usize::try_from(end - *position).unwrap_or(usize::MAX).min(GUEST_BULK);
            let mut buffer = Vec::with_capacity(wanted);
            let count = rustix::io::pread(file, rustix::buffer::spare_capacity(&mut buffer), *position)
                .map_err(failed("read", path))?;
            if count == 0 {
                return Ok(true);
            }
            buffer.truncate(wanted);
            *position += buffer.len() as u64;
            self.data(buffer)?;
        }
        Ok(false)
    }

    /// Sends what is large and not in the page cache past it. What is left after that takes the ordinary way.
    fn ahead(&self, file: &File, path: &Path, position: &mut u64, end: u64) -> AgentResult<()> {
        let size = file.metadata().map_err(failed("look at", path))?.len();
        let aligned = position.is_multiple_of(4096);
        if !aligned || size.min(end).saturating_sub(*position) < 2 * ahead::PORTION as u64 {
            return Ok(());
        }
        let Some(direct) = ahead::open(file, path, *position) else { return Ok(()) };
        *position = ahead::portions(&direct, *position, end, |mut bytes| {
            while !bytes.is_empty() {
                self.data(bytes.split_to(bytes.len().min(GUEST_BULK)))?;
            }
            Ok::<_, AgentError>(())
        })?;
        Ok(())
    }
}
