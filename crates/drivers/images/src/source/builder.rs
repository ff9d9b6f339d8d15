//! Collects the content of an image, within limits.

use std::io::Read;

use camino::{Utf8Path, Utf8PathBuf};
use microvm_durable::cancel::Cancel;
use microvm_durable::error::bad_input;
use microvm_ports::storage::ImageConfig;
use microvm_ports::{Progress, StorageError};

use crate::config::ArchiveLimits;
use crate::erofs::{Attributes, FileData, Kind, PathError, Spool, Tree, TreeMemory};

/// An image that is being put together.
pub(crate) struct Builder {
    pub(crate) tree: Tree,
    pub(crate) spool: Spool,
    pub(crate) cancel: Cancel,
    pub(crate) progress: Progress,
    /// Configuration of programs that the source brings.
    pub(crate) config: ImageConfig,
    /// True if access control lists wait to be translated.
    pub(super) has_acls: bool,
    limits: ArchiveLimits,
    bytes: u64,
    reported: u64,
}

/// Bytes between two reports of progress.
const REPORT_EVERY: u64 = 4 << 20;

impl Builder {
    /// Refuses an image of nothing: it is never made by mistake.
    pub(crate) fn refuse_empty(&self, what: &str) -> Result<(), StorageError> {
        if self.is_empty() {
            return Err(bad_input(what, "there is nothing in it"));
        }
        Ok(())
    }

    /// True if nothing is in it.
    pub(crate) fn is_empty(&self) -> bool {
        self.tree.children(0).next().is_none()
    }

    /// An empty image whose contents wait in a new file at `spool`.
    pub(crate) fn new(
        spool: Utf8PathBuf,
        limits: ArchiveLimits,
        memory: TreeMemory,
        cancel: Cancel,
        progress: Progress,
    ) -> Result<Self, StorageError> {
        Ok(Self {
            tree: Tree::new(limits.entries, limits.memory, memory),
            spool: Spool::create(spool)?,
            cancel,
            progress,
            config: ImageConfig::default(),
            has_acls: false,
            limits,
            bytes: 0,
            reported: 0,
        })
    }

    /// Begins with everything that an image of the store has.
    pub(crate) fn begin_with(&mut self, path: &Utf8Path, config: ImageConfig) -> Result<(), StorageError> {
        crate::erofs::read(path, &mut self.tree, &mut self.spool, &self.cancel)?;
        self.tree.next_layer();
        self.config = config;
        Ok(())
    }

    /// Content of a small file of the image, links on the way to its folder followed; `None` if there is none.
    pub(crate) fn content(&mut self, path: &[u8], most: u64) -> Result<Option<Vec<u8>>, StorageError> {
        let Ok(Some(node)) = self.tree.find(path) else { return Ok(None) };
        let Kind::File(data) = &self.tree.node(node).kind else { return Ok(None) };
        let data = data.clone();
        self.spool.content(&data, most)
    }

    /// Puts a file of root's with this content at a path.
    pub(crate) fn put(&mut self, path: &str, mode: u16, content: &[u8]) -> Result<(), StorageError> {
        let data = self.spool.store(content)?;
        self.insert(path, path.as_bytes(), Attributes::root(mode), Kind::File(data))
    }

    /// Names in a directory of the image; none if there is no such directory.
    pub(crate) fn names(&self, directory: &[u8]) -> Vec<String> {
        let Ok(Some(node)) = self.tree.find(directory) else { return Vec::new() };
        self.tree.children(node).map(|(name, _)| String::from_utf8_lossy(name).into_owned()).collect()
    }

    /// True if there is anything at a path.
    pub(crate) fn has(&self, path: &[u8]) -> bool {
        matches!(self.tree.find(path), Ok(Some(_)))
    }

    /// Puts an entry at a path. `what` names the source in errors.
    pub(crate) fn insert(
        &mut self,
        what: &str,
        path: &[u8],
        attributes: Attributes,
        kind: Kind,
    ) -> Result<(), StorageError> {
        self.cancel.check()?;
        self.tree.insert(path, attributes, kind).map_err(|error| path_error(what, error))
    }

    /// Takes in one file: `stored` bytes of `data`, spread over `segments` (offset and length) of a file of `size` bytes;
    /// without segments the data is the file.
    pub(crate) fn file(
        &mut self,
        what: &str,
        data: &mut impl Read,
        size: u64,
        segments: Option<&[(u64, u64)]>,
    ) -> Result<FileData, StorageError> {
        // Before a byte is read: an archive may say any size.
        self.account(what, size)?;
        let whole = [(0, size)];
        let mut file = self.spool.begin();
        let mut buffer = vec![0; usize::try_from(size.clamp(1, 1 << 17)).unwrap_or(1 << 17)];
        for &(offset, length) in segments.unwrap_or(&whole) {
            let gap = offset
                .checked_sub(file.size())
                .ok_or_else(|| bad_input(what, "a sparse file in it has parts that overlap"))?;
            file.zeros(gap)?;
            let mut left = length;
            while left > 0 {
                self.cancel.check()?;
                let wanted = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
                let count =
                    data.read(&mut buffer[..wanted]).map_err(|error| bad_input(what, error.to_string()))?;
                if count == 0 {
                    return Err(bad_input(what, "it ends in the middle of a file"));
                }
                file.write(&buffer[..count])?;
                left -= count as u64;
            }
        }
        let rest = size
            .checked_sub(file.size())
            .ok_or_else(|| bad_input(what, "a sparse file in it has parts behind its end"))?;
        file.zeros(rest)?;
        let data = file.finish()?;
        self.report();
        Ok(data)
    }

    fn account(&mut self, what: &str, size: u64) -> Result<(), StorageError> {
        self.bytes = self.bytes.saturating_add(size);
        if self.bytes > self.limits.bytes {
            let limit = self.limits.bytes;
            return Err(bad_input(
                what,
                format!("its files have more than {} GiB in all", limit.div_ceil(1 << 30)),
            ));
        }
        Ok(())
    }

    fn report(&mut self) {
        if self.bytes - self.reported >= REPORT_EVERY {
            self.reported = self.bytes;
            self.progress.advance("reading files", self.bytes, None);
        }
    }
}

/// A path the tree refused makes the whole source unusable.
pub(crate) fn path_error(what: &str, error: PathError) -> StorageError {
    bad_input(what, error.0)
}
