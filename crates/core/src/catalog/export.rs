//! Files of images and VMs for other programs.

use microvm_ports::PulledArchive;
use microvm_ports::guest::ByteStream;
use microvm_types::image::ChangedPath;
use microvm_types::{OperationName, VmRef};

use crate::context::Context;
use crate::error::ServiceError;
use crate::vm::lease::GuestLease;

/// Files of images for other programs.
#[derive(Debug, Clone)]
pub struct Exports {
    context: Context,
}

impl Exports {
    pub(crate) fn new(context: &Context) -> Self {
        Self { context: context.clone() }
    }

    /// An image as one archive that other programs read: see
    /// [`ImageStore::export_image`](microvm_ports::ImageStore::export_image).
    ///
    /// # Errors
    /// Storage errors.
    pub async fn image(&self, reference: &str) -> Result<ByteStream, ServiceError> {
        self.context.authorise(OperationName::IMAGE_EXPORT)?;
        Ok(self.context.shared.ports.images.export_image(reference).await?)
    }

    /// All files of a running VM's root as a tar stream, of one moment: what writes to its disk waits until the changes against
    /// its image are read. Sockets and files called `.wh.*` are left out and told.
    ///
    /// # Errors
    /// [`ServiceError::NotRunning`]; storage errors.
    pub async fn vm(&self, vm: &VmRef) -> Result<PulledArchive, ServiceError> {
        let (layer, base, _guest) = self.layer(vm, OperationName::VM_EXPORT).await?;
        let PulledArchive { data, left_out } = layer;
        let what = format!("the VM `{vm}`");
        let data = self.context.shared.ports.images.export_files(&what, &base, data).await?;
        Ok(PulledArchive { data, left_out })
    }

    /// The differences between a running VM's root and its image, in order of paths and of one moment.
    ///
    /// # Errors
    /// [`ServiceError::NotRunning`]; storage errors.
    pub async fn changes(&self, vm: &VmRef) -> Result<Vec<ChangedPath>, ServiceError> {
        let (layer, base, _guest) = self.layer(vm, OperationName::VM_CHANGES).await?;
        Ok(self.context.shared.ports.images.layer_changes(&base, layer.data).await?)
    }

    /// The changes of a running VM's root as a layer, and the digest of its image. The lease keeps idle care away while the layer
    /// is read, which may take minutes.
    async fn layer(
        &self,
        vm: &VmRef,
        operation: OperationName,
    ) -> Result<(PulledArchive, String, GuestLease), ServiceError> {
        self.context.authorise(operation)?;
        let handle = self.context.owned(vm)?;
        let base = handle.record().image_digest;
        let guest = handle.guest(&self.context.shared).await?;
        Ok((guest.pull_layer().await?, base, guest))
    }
}
