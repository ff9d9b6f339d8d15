//! Writing files of images out, as a stream.

use std::io::Write as _;
use std::time::Instant;

use bytes::Bytes;
use microvm_ports::guest::ByteStream;
use microvm_ports::storage::ChangedPath;
use microvm_ports::{GuestError, Pace, Progress, StorageError};
use tokio::runtime::Handle;
use tokio::sync::mpsc;

use super::Images;
use crate::export::{Export, changes};
use crate::source::builder::Builder;
use crate::source::tar_image::{Whiteouts, add_tar};

/// Parts of an archive that wait for their reader.
const DEPTH: usize = 4;
/// Bytes of one part.
const PART: usize = 1 << 18;

impl Images {
    pub(super) async fn export(&self, reference: &str) -> Result<ByteStream, StorageError> {
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
        Ok(self.stream(prepared.await?))
    }

    /// The files of an image under a layer. The layer is read first and whole: whoever sends it may be waiting for that.
    pub(super) async fn export_under(
        &self,
        what: &str,
        base: &str,
        layer: ByteStream,
    ) -> Result<ByteStream, StorageError> {
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
        Ok(self.stream(prepared.await?))
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

    /// The archive as it is written. If the stream is dropped, or nobody reads on, the work ends.
    fn stream(&self, export: Export) -> ByteStream {
        let (parts, arriving) = mpsc::channel(DEPTH);
        let (images, runtime) = (self.clone(), Handle::current());
        let writing = async move {
            let work = images.blocking(move |_, cancel| {
                let parts = Parts { parts, runtime, pace: Pace::default() };
                let mut out = std::io::BufWriter::with_capacity(PART, parts);
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

/// Sends parts as they are written; fails when nobody takes them, or not as fast as a reader has to be.
struct Parts {
    parts: mpsc::Sender<Bytes>,
    runtime: Handle,
    pace: Pace,
}

impl std::io::Write for Parts {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let part = Bytes::copy_from_slice(bytes);
        let began = Instant::now();
        let sending = self.parts.send_timeout(part, self.pace.left());
        match self.runtime.block_on(sending) {
            Ok(()) => {
                self.pace.note(began.elapsed(), bytes.len() as u64);
                Ok(bytes.len())
            }
            Err(mpsc::error::SendTimeoutError::Closed(_)) => Err(std::io::ErrorKind::BrokenPipe.into()),
            Err(mpsc::error::SendTimeoutError::Timeout(_)) => {
                let why = format!(
                    "its reader took nothing for {:?}, or less than {} KiB in a second",
                    Pace::SILENCE,
                    Pace::LEAST_RATE >> 10
                );
                Err(std::io::Error::new(std::io::ErrorKind::TimedOut, why))
            }
        }
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
