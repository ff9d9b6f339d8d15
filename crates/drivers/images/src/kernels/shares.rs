//! Recognition of kernels that can mount folders of the host.

use std::io::Read as _;

use microvm_durable::error::io_error;
use microvm_ports::StorageError;

use super::{KernelFiles, KernelManifest, elf};

/// Modules of the file system and of its way over virtio.
const MODULES: [&str; 2] = ["9p.ko", "9pnet_virtio.ko"];
/// Marks of a kernel that has both built in (fs/9p/v9fs.c, net/9p/trans_virtio.c).
const MARKS: [&[u8]; 2] = [b"Installing v9fs 9p2000", b"9pnet_virtio"];
/// Bytes of a kernel that are looked at in one piece.
const PIECE: usize = 1 << 20;

impl KernelFiles {
    /// A compressed kernel cannot be looked into: it gets the benefit of the doubt, and the guest tells if it was wrong.
    pub(crate) fn kernel_mounts_shares(&self, name: &str) -> Result<bool, StorageError> {
        let name = self.find_kernel(name)?;
        let record = self.kernel_manifest(&name)?;
        if has_modules(&record) {
            return Ok(true);
        }
        let path = self.kernel_directory(&name).join(&record.kernel.name);
        let mut file = std::fs::File::open(&path).map_err(io_error("opening", &path))?;
        let mut found = [false; MARKS.len()];
        let mut window = Vec::with_capacity(2 * PIECE);
        let mut first = true;
        loop {
            // What is kept of the piece before is shorter than a mark, so that none is cut in two.
            let kept = window.len().min(MARKS[0].len());
            window.drain(..window.len() - kept);
            let read = file.by_ref().take(PIECE as u64).read_to_end(&mut window);
            if read.map_err(io_error("reading", &path))? == 0 {
                return Ok(found.iter().all(|found| *found));
            }
            if std::mem::take(&mut first) && !elf::is_elf64(&window) {
                return Ok(true);
            }
            for (mark, found) in MARKS.iter().zip(&mut found) {
                *found |= contains(&window, mark);
            }
        }
    }
}

fn has_modules(record: &KernelManifest) -> bool {
    MODULES.iter().all(|wanted| record.modules.iter().any(|module| module.name == *wanted))
}

fn contains(data: &[u8], mark: &[u8]) -> bool {
    let mut rest = data;
    while let Some(at) = rest.iter().position(|byte| *byte == mark[0]) {
        if rest[at..].starts_with(mark) {
            return true;
        }
        rest = &rest[at + 1..];
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_are_found_anywhere() {
        for data in [&b"9pnet_virtio"[..], b"999pnet_virtio", b"x9pnet_9pnet_virtio."] {
            assert!(contains(data, b"9pnet_virtio"));
        }
        assert!(!contains(b"9pnet_virti", b"9pnet_virtio"));
        assert!(!contains(b"", b"9pnet_virtio"));
    }
}
