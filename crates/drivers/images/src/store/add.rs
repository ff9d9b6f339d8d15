//! Adding images: from a source, or from a stream of the guest.

use bytes::Bytes;
use futures::StreamExt;
use microvm_durable::cancel::Cancel;
use microvm_durable::workspace::Workspace;
use microvm_ports::guest::ByteStream;
use microvm_ports::storage::{Additions, ExtendedImage, ImageConfig, ImageInfo, ImageSource, RecipeFile};
use microvm_ports::{Progress, StorageError};

use super::{Images, Inner};
use crate::images::check_name;
use crate::source::builder::Builder;
use crate::source::tar_image::{Whiteouts, add_tar};
use crate::source::{additions, debian, path, recipe, registry};

/// Parts of a stream that wait to be taken in.
const STREAM_DEPTH: usize = 16;

/// Meaning of a tar stream.
pub(super) enum StreamKind {
    /// A whole root.
    Root,
    /// A layer over an image.
    Layer {
        /// Name or digest of that image.
        base: String,
    },
}

impl Inner {
    pub(super) fn builder(
        &self,
        workspace: &Workspace,
        cancel: Cancel,
        progress: Progress,
    ) -> Result<Builder, StorageError> {
        let memory = self.tree_memory.clone();
        Builder::new(workspace.join("contents"), self.limits, memory, cancel, progress)
    }
}

impl Images {
    pub(super) async fn add_from_source(
        &self,
        name: &str,
        source: &ImageSource,
        files: &[RecipeFile],
        config: &ImageConfig,
        progress: Progress,
    ) -> Result<ImageInfo, StorageError> {
        // Before the work, which may take minutes.
        check_name(name)?;
        let (name, files, config) = (name.to_owned(), files.to_vec(), config.clone());
        match source.clone() {
            ImageSource::Debian { suite, packages, users } => {
                self.blocking(move |inner, cancel| {
                    let workspace = inner.workspace()?;
                    let mut builder = inner.builder(&workspace, cancel, progress)?;
                    let system = debian::System { suite: &suite, packages: &packages, users: &users };
                    debian::add_debian(&mut builder, &workspace, &system)?;
                    recipe::add_files(&mut builder, &files)?;
                    let described = format!(
                        "Debian {suite}: {}",
                        if packages.is_empty() { "minimal".to_owned() } else { packages.join(" ") }
                    );
                    inner.images.publish_image(&name, described, &config, builder, &workspace)
                })
                .await
            }
            ImageSource::Path { path: from } => {
                self.blocking(move |inner, cancel| {
                    let workspace = inner.workspace()?;
                    let mut builder = inner.builder(&workspace, cancel, progress)?;
                    let kind = path::add_path(&mut builder, &workspace, &from)?;
                    recipe::add_files(&mut builder, &files)?;
                    let described = format!("{kind} {}", from.file_name().unwrap_or("/"));
                    inner.images.publish_image(&name, described, &config, builder, &workspace)
                })
                .await
            }
            ImageSource::Registry { reference, plain_http, authorities, login } => {
                let workspace = self.blocking(|inner, _| inner.workspace()).await?;
                // The workspace goes with this future if it is dropped while the network is slow.
                let layout = workspace.join("layout");
                let from = registry::From {
                    reference: &reference,
                    plain_http,
                    authorities: authorities.as_deref(),
                    login: login.as_ref(),
                };
                registry::pull(from, &layout, self.0.limits.bytes, &progress).await?;
                self.blocking(move |inner, cancel| {
                    let mut builder = inner.builder(&workspace, cancel, progress)?;
                    crate::source::oci::add_layout(&mut builder, &reference, &layout, None)?;
                    recipe::add_files(&mut builder, &files)?;
                    inner.images.publish_image(
                        &name,
                        format!("registry {reference}"),
                        &config,
                        builder,
                        &workspace,
                    )
                })
                .await
            }
        }
    }

    pub(super) async fn extend(
        &self,
        name: &str,
        base: &str,
        additions: &Additions,
        config: &ImageConfig,
        progress: Progress,
    ) -> Result<ExtendedImage, StorageError> {
        check_name(name)?;
        let (name, base, additions, config) =
            (name.to_owned(), base.to_owned(), additions.clone(), config.clone());
        self.blocking(move |inner, cancel| {
            let below = inner.images.resolve_image(&base)?;
            let called = below.info.called().to_owned();
            let workspace = inner.workspace()?;
            let mut builder = inner.builder(&workspace, cancel, progress)?;
            builder.begin_with(&below.path, below.info.config)?;
            let unfinished = additions::add(&mut builder, &workspace, &inner.cache, &additions)?;
            let described = additions::describe(&called, &additions);
            let info = inner.images.publish_image(&name, described, &config, builder, &workspace)?;
            Ok(ExtendedImage { info, unfinished })
        })
        .await
    }

    pub(super) async fn add_from_stream(
        &self,
        name: &str,
        description: &str,
        kind: StreamKind,
        config: &ImageConfig,
        data: ByteStream,
        progress: Progress,
    ) -> Result<ImageInfo, StorageError> {
        check_name(name)?;
        let (name, description, config) = (name.to_owned(), description.to_owned(), config.clone());
        self.reading(data, move |inner, cancel, reader| {
            let workspace = inner.workspace()?;
            let mut builder = inner.builder(&workspace, cancel, progress)?;
            let whiteouts = match &kind {
                StreamKind::Root => Whiteouts::Plain,
                StreamKind::Layer { base } => {
                    let below = inner.images.resolve_image(base)?;
                    builder.begin_with(&below.path, below.info.config)?;
                    Whiteouts::Oci
                }
            };
            let reader = crate::source::compression::decompress("the stream", reader)?;
            add_tar(&mut builder, "the stream", reader, whiteouts)?;
            inner.images.publish_image(&name, description, &config, builder, &workspace)
        })
        .await
    }

    /// Runs blocking work on the store that reads a stream.
    pub(super) async fn reading<T: Send + 'static>(
        &self,
        mut data: ByteStream,
        work: impl FnOnce(&Inner, Cancel, StreamReader) -> Result<T, StorageError> + Send + 'static,
    ) -> Result<T, StorageError> {
        let (sender, receiver) = tokio::sync::mpsc::channel::<Result<Bytes, String>>(STREAM_DEPTH);
        let work = self.blocking(move |inner, cancel| {
            work(inner, cancel, StreamReader { receiver, part: Bytes::new() })
        });
        let pump = async move {
            while let Some(part) = data.next().await {
                let part = part.map_err(|error| error.to_string());
                // The receiver goes when the work has failed; its error tells why.
                if sender.send(part).await.is_err() {
                    break;
                }
            }
        };
        tokio::pin!(work);
        tokio::select! {
            biased;
            // If both have ended, this one tells how it went.
            result = &mut work => return result,
            () = pump => {}
        }
        work.await
    }
}

/// Blocking reader of a channel. When the future that feeds it is dropped the channel ends, and with it the archive, early.
pub(super) struct StreamReader {
    receiver: tokio::sync::mpsc::Receiver<Result<Bytes, String>>,
    part: Bytes,
}

impl std::io::Read for StreamReader {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        while self.part.is_empty() {
            match self.receiver.blocking_recv() {
                None => return Ok(0),
                Some(Ok(part)) => self.part = part,
                Some(Err(error)) => return Err(std::io::Error::other(error)),
            }
        }
        let count = self.part.len().min(buffer.len());
        buffer[..count].copy_from_slice(&self.part.split_to(count));
        Ok(count)
    }
}
