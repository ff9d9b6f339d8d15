//! Images and kernels.

use microvm_api::image::{AddImage, CommitImage, Freed, Image, ImageList, TagImage};
use microvm_api::kernel::{AddKernel, Kernel, KernelList};
use microvm_api::operation::{ImageRef, KernelRef};
use microvm_api::operations::{image, kernel, vm};
use microvm_api::progress::ProgressLine;
use microvm_api::vm::VmChanges;
use microvm_types::VmRef;

use crate::client::Client;
use crate::error::ClientError;
use crate::lines::Lines;
use crate::transfer::Download;

/// Each method is one request; see the REST reference for what it does. All fail with [`ClientError`].
#[expect(clippy::missing_errors_doc, reason = "said once for all above")]
impl Client {
    /// All images, newest first.
    pub async fn images(&self) -> Result<ImageList, ClientError> {
        self.ask::<image::List>(&()).await
    }

    /// One image by name or digest.
    pub async fn image(&self, reference: &str) -> Result<Image, ClientError> {
        self.ask::<image::Get>(&ImageRef::from(reference)).await
    }

    /// Makes an image; the lines tell how far it is.
    pub async fn add_image(&self, request: &AddImage) -> Result<Lines<ProgressLine>, ClientError> {
        self.tell::<image::Add>(&(), request).await
    }

    /// Makes an image of a VM; the lines tell how far it is.
    pub async fn commit(&self, request: &CommitImage) -> Result<Lines<ProgressLine>, ClientError> {
        self.tell::<image::Commit>(&(), request).await
    }

    /// Gives an image a further name.
    pub async fn tag_image(&self, request: &TagImage) -> Result<Image, ClientError> {
        self.tell::<image::Tag>(&(), request).await
    }

    /// The image as one archive that other programs read.
    pub async fn export_image(&self, reference: &str) -> Result<Download, ClientError> {
        self.ask::<image::Export>(&ImageRef::from(reference)).await
    }

    /// All files of a running VM's root as a tar stream.
    pub async fn export_vm(&self, vm: &VmRef) -> Result<Download, ClientError> {
        self.ask::<vm::Export>(vm).await
    }

    /// The differences between a running VM's root and its image.
    pub async fn changes(&self, vm: &VmRef) -> Result<VmChanges, ClientError> {
        self.ask::<vm::Changes>(vm).await
    }

    /// Removes a name, and the image with its last name.
    pub async fn remove_image(&self, reference: &str) -> Result<(), ClientError> {
        self.ask::<image::Remove>(&ImageRef::from(reference)).await
    }

    /// Removes unreferenced images.
    pub async fn collect_garbage(&self) -> Result<Freed, ClientError> {
        self.ask::<image::Prune>(&()).await
    }

    /// All kernels by name.
    pub async fn kernels(&self) -> Result<KernelList, ClientError> {
        self.ask::<kernel::List>(&()).await
    }

    /// One kernel by name.
    pub async fn kernel(&self, name: &str) -> Result<Kernel, ClientError> {
        self.ask::<kernel::Get>(&KernelRef::from(name)).await
    }

    /// Adds a kernel; the lines tell how far it is.
    pub async fn add_kernel(&self, request: &AddKernel) -> Result<Lines<ProgressLine>, ClientError> {
        self.tell::<kernel::Add>(&(), request).await
    }

    /// Removes a kernel.
    pub async fn remove_kernel(&self, name: &str) -> Result<(), ClientError> {
        self.ask::<kernel::Remove>(&KernelRef::from(name)).await
    }
}
