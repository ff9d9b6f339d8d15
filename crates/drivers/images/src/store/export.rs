//! Writing files of images out, as a stream.

use std::io::Write as _;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use microvm_ports::guest::ByteStream;
use microvm_ports::storage::ChangedPath;
use microvm_ports::{GuestError, Progress, StorageError};
use tokio::runtime::Handle;
use tokio::sync::mpsc;

use super::Images;
use crate::export::{Export, changes};
use crate::source::builder::Builder;
use crate::source::tar_image::{Whiteouts, add_tar};

/// Archives that are written at once: each takes a thread, and the memory of its names.
pub(super) const AT_ONCE: usize = 4;
/// Parts of an archive that wait for their reader.
const DEPTH: usize = 4;
/// Bytes of one part.
const PART: usize = 1 << 18;
/// Longest time for which a reader may take nothing: it keeps others from theirs.
const SILENCE: Duration = Duration::from_mins(2);

impl Images {
    pub(super) async fn export(&self, reference: &str) -> Result<ByteStream, StorageError> {
        let turn = self.turn().await?;
        let reference = reference.to_owned();
        // Faults of the image are told before the first byte.
        let prepared = self.blocking(move |inner, cancel| {
            let image = inner.images.resolve_image(&reference)?;
            let workspace = inner.workspace()?;
            let mut builder = inner.builder(&workspace, cancel, Progress::ignored())?;
            builder.begin_with(&image.path, image.info.config.clone())?;
            let name = image.info.names.iter().find(|name| **name == reference);
            Export::image(builder, &image.info, name.map(String::as_str), workspace)
        });
        Ok(self.stream(prepared.await?, turn))
    }

    /// The files of an image under a layer. The layer is read first and whole: whoever sends it may be waiting for that.
    pub(super) async fn export_under(
        &self,
        what: &str,
        base: &str,
        layer: ByteStream,
    ) -> Result<ByteStream, StorageError> {
        let turn = self.turn().await?;
        let (what, base) = (what.to_owned(), base.to_owned());
        let prepared = self.reading(layer, move |inner, cancel, reader| {
            let workspace = inner.workspace()?;
            let mut builder = inner.builder(&workspace, cancel, Progress::ignored())?;
            let below = inner.images.resolve_image(&base)?;
            builder.begin_with(&below.path, below.info.config)?;
            add_tar(&mut builder, &what, reader, Whiteouts::Oci)?;
            builder.translate_acls(&what)?;
            Export::files(builder, &what, workspace)
        });
        Ok(self.stream(prepared.await?, turn))
    }

    /// Everything that a layer changes of an image.
    pub(super) async fn changes(
        &self,
        base: &str,
        layer: ByteStream,
    ) -> Result<Vec<ChangedPath>, StorageError> {
        let base = base.to_owned();
        self.reading(layer, move |inner, cancel, reader| {
            let workspace = inner.workspace()?;
            let below = inner.images.resolve_image(&base)?;
            let begun = |name: &str| {
                let spool = workspace.join(name);
                let memory = inner.tree_memory.clone();
                let mut builder =
                    Builder::new(spool, inner.limits, memory, cancel.clone(), Progress::ignored())?;
                builder.begin_with(&below.path, below.info.config.clone())?;
                Ok::<_, StorageError>(builder)
            };
            let mut after = begun("after")?;
            after.spool.forget_contents();
            add_tar(&mut after, "the changes", reader, Whiteouts::Oci)?;
            let before = begun("before")?;
            changes::between(&before.tree, &after.tree, &cancel)
        })
        .await
    }

    /// Waits until fewer than [`AT_ONCE`] archives are being written.
    pub(super) async fn turn(&self) -> Result<Turn, StorageError> {
        let permit = Arc::clone(&self.0.exports).acquire_owned().await;
        permit.map_err(|_| StorageError::Io {
            action: "working in",
            path: self.0.root.clone(),
            cause: std::io::Error::other("the program is shutting down"),
        })
    }

    /// The archive as it is written. If the stream is dropped the work ends.
    pub(super) fn stream(&self, export: Export, turn: Turn) -> ByteStream {
        let (parts, arriving) = mpsc::channel(DEPTH);
        let (images, runtime) = (self.clone(), Handle::current());
        let writing = async move {
            let work = images.blocking(move |_, cancel| {
                let _turn = turn;
                let mut out = std::io::BufWriter::with_capacity(PART, Parts { parts, runtime });
                export.write(&mut out, &cancel)?;
                out.flush().map_err(|cause| StorageError::Io {
                    action: "writing",
                    path: "the archive".into(),
                    cause,
                })
            });
            work.await
        };
        let state = (arriving, Some(Box::pin(writing)));
        Box::pin(futures::stream::unfold(state, |(mut arriving, mut writing)| async move {
            loop {
                let Some(work) = &mut writing else {
                    // Parts that were written before the end are still on their way.
                    return arriving.recv().await.map(|part| (Ok(part), (arriving, None)));
                };
                tokio::select! {
                    biased;
                    Some(part) = arriving.recv() => return Some((Ok(part), (arriving, writing))),
                    written = work => {
                        writing = None;
                        if let Err(error) = written {
                            let error = GuestError::Source(error.to_string());
                            // Nothing comes after an error, also no part that waits.
                            arriving.close();
                            while arriving.try_recv().is_ok() {}
                            return Some((Err(error), (arriving, None)));
                        }
                    }
                }
            }
        }))
    }
}

/// Right to write an archive, until it is dropped.
pub(super) type Turn = tokio::sync::OwnedSemaphorePermit;

/// Sends parts as they are written; fails when nobody takes them.
struct Parts {
    parts: mpsc::Sender<Bytes>,
    runtime: Handle,
}

impl std::io::Write for Parts {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let part = Bytes::copy_from_slice(bytes);
        let sending = self.parts.send_timeout(part, SILENCE);
        match self.runtime.block_on(sending) {
            Ok(()) => Ok(bytes.len()),
            Err(mpsc::error::SendTimeoutError::Closed(_)) => Err(std::io::ErrorKind::BrokenPipe.into()),
            Err(mpsc::error::SendTimeoutError::Timeout(_)) => Err(std::io::Error::new(
                std::io::ErrorKind::TimedOut,
                format!("nothing of it was taken for {SILENCE:?}"),
            )),
        }
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
