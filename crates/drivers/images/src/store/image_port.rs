//! The port for images.

use async_trait::async_trait;
use microvm_durable::workspace::remove_leftovers;
use microvm_ports::guest::ByteStream;
use microvm_ports::storage::{ImageConfig, ImageInfo, ImageSource, RecipeFile, ResolvedImage};
use microvm_ports::{ImageStore, Progress, StorageError};
use microvm_types::Listed;

use super::Images;

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
        self.add_from_stream(name, description, config, data, progress).await
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
            freed += inner.kernels.remove_old_initramfs()?;
            Ok(freed)
        })
        .await
    }

    async fn verify_all(&self, progress: Progress) -> Result<Vec<String>, StorageError> {
        self.blocking(move |inner, cancel| inner.verify_everything(&cancel, &progress)).await
    }
}
