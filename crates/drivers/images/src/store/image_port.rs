//! The port for images.

use async_trait::async_trait;
use camino::Utf8Path;
use microvm_durable::workspace::remove_leftovers;
use microvm_ports::guest::ByteStream;
use microvm_ports::storage::{
    Additions, ChangedPath, ExtendedImage, ImageConfig, ImageInfo, ImageSource, Placement, RecipeFile,
    ResolvedImage,
};
use microvm_ports::{ImageStore, Progress, StorageError};
use microvm_types::Listed;
use microvm_types::template::DiskFormat;

use super::Images;
use super::add::StreamKind;
use crate::source::package_cache;

#[async_trait]
impl ImageStore for Images {
    async fn images(&self) -> Result<Listed<ImageInfo>, StorageError> {
        self.blocking(|inner, _| inner.images.list_images()).await
    }

    async fn image(&self, reference: &str) -> Result<ResolvedImage, StorageError> {
        let reference = reference.to_owned();
        self.blocking(move |inner, _| inner.images.resolve_image(&reference)).await
    }

    async fn add_image(
        &self,
        name: &str,
        source: &ImageSource,
        files: &[RecipeFile],
        config: &ImageConfig,
        progress: Progress,
    ) -> Result<ImageInfo, StorageError> {
        self.add_from_source(name, source, files, config, progress).await
    }

    async fn add_image_from_stream(
        &self,
        name: &str,
        description: &str,
        config: &ImageConfig,
        data: ByteStream,
        progress: Progress,
    ) -> Result<ImageInfo, StorageError> {
        self.add_from_stream(name, description, StreamKind::Root, config, data, progress).await
    }

    async fn add_layer(
        &self,
        name: &str,
        base: &str,
        description: &str,
        config: &ImageConfig,
        data: ByteStream,
        progress: Progress,
    ) -> Result<ImageInfo, StorageError> {
        let kind = StreamKind::Layer { base: base.to_owned() };
        self.add_from_stream(name, description, kind, config, data, progress).await
    }

    async fn disk_at(&self, path: &Utf8Path) -> Result<Option<DiskFormat>, StorageError> {
        let path = path.to_owned();
        self.blocking(move |_, _| crate::source::disk::look(&path)).await
    }

    async fn check_additions(&self, additions: &Additions) -> Result<(), StorageError> {
        let additions = additions.clone();
        self.blocking(move |_, cancel| crate::source::additions::check(&additions, &cancel)).await
    }

    async fn extend_image(
        &self,
        name: &str,
        base: &str,
        additions: &Additions,
        config: &ImageConfig,
        progress: Progress,
    ) -> Result<ExtendedImage, StorageError> {
        self.extend(name, base, additions, config, progress).await
    }

    async fn name_image(&self, reference: &str, name: &str) -> Result<ImageInfo, StorageError> {
        let (reference, name) = (reference.to_owned(), name.to_owned());
        self.blocking(move |inner, _| inner.images.add_name(&reference, &name, &inner.workspace()?)).await
    }

    async fn export_image(&self, reference: &str) -> Result<ByteStream, StorageError> {
        self.export(reference).await
    }

    async fn export_files(
        &self,
        what: &str,
        base: &str,
        layer: ByteStream,
    ) -> Result<ByteStream, StorageError> {
        self.export_under(what, base, layer).await
    }

    async fn layer_changes(&self, base: &str, layer: ByteStream) -> Result<Vec<ChangedPath>, StorageError> {
        self.changes(base, layer).await
    }

    async fn build_key(
        &self,
        text: &str,
        files: &[RecipeFile],
        placements: &[Placement],
    ) -> Result<String, StorageError> {
        let (text, files, placements) = (text.to_owned(), files.to_vec(), placements.to_vec());
        self.blocking(move |inner, cancel| {
            crate::source::build_key::of(&text, &files, &placements, inner.limits, &cancel)
        })
        .await
    }

    async fn cached_build(&self, key: &str) -> Result<Option<String>, StorageError> {
        let key = key.to_owned();
        self.blocking(move |inner, _| inner.images.cached_build(&key)).await
    }

    async fn remember_build(&self, key: &str, digest: &str) -> Result<(), StorageError> {
        let (key, digest) = (key.to_owned(), digest.to_owned());
        self.blocking(move |inner, _| inner.images.remember_build(&key, &digest, &inner.workspace()?)).await
    }

    async fn remove_image(&self, reference: &str, in_use: &[String]) -> Result<(), StorageError> {
        let (reference, in_use) = (reference.to_owned(), in_use.to_vec());
        self.blocking(move |inner, _| inner.images.remove_reference(&reference, &in_use)).await
    }

    async fn remove_image_name(&self, name: &str) -> Result<(), StorageError> {
        let name = name.to_owned();
        self.blocking(move |inner, _| inner.images.remove_name(&name)).await
    }

    async fn collect_garbage(&self, in_use: &[String]) -> Result<u64, StorageError> {
        let in_use = in_use.to_vec();
        self.blocking(move |inner, _| {
            let mut freed = remove_leftovers(&inner.work)?;
            freed += inner.images.remove_unnamed(&in_use)?;
            freed += inner.images.remove_old_builds()?;
            freed += inner.kernels.remove_old_initramfs()?;
            Ok(freed)
        })
        .await
    }

    async fn clear_package_cache(&self) -> Result<u64, StorageError> {
        self.blocking(|inner, _| package_cache::clear(&inner.cache)).await
    }

    async fn verify_all(&self, progress: Progress) -> Result<Vec<String>, StorageError> {
        self.blocking(move |inner, cancel| inner.verify_everything(&cancel, &progress)).await
    }
}
