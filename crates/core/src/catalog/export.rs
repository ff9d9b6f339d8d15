//! Files of images and VMs for other programs.

use std::sync::Arc;

use futures::StreamExt;
use microvm_ports::PulledArchive;
use microvm_ports::guest::ByteStream;
use microvm_types::files::LeftOut;
use microvm_types::image::ChangedPath;
use microvm_types::{OperationName, VmRef};
use tokio::sync::OwnedSemaphorePermit;

use super::paced::paced;
use crate::context::Context;
use crate::error::ServiceError;
use crate::vm::lease::GuestLease;
use crate::vm::shared::{EXPORTS_AT_ONCE, Shared};

/// Files of images for other programs.
#[derive(Debug, Clone)]
pub struct Exports {
    context: Context,
}

/// Differences between the root of a VM and its image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RootChanges {
    /// Every path that differs, in order.
    pub changes: Vec<ChangedPath>,
    /// What the guest did not tell of; `None`: its agent is of an older version, which does not say.
    pub left_out: Option<LeftOut>,
}

impl Exports {
    pub(crate) fn new(context: &Context) -> Self {
        Self { context: context.clone() }
    }

    /// An image as one archive that other programs read: see
    /// [`ImageStore::export_image`](microvm_ports::ImageStore::export_image). A reader that is slower than
    /// [`Pace`](microvm_ports::Pace) allows ends it.
    ///
    /// # Errors
    /// [`ServiceError::ExportsBusy`]; storage errors.
    pub async fn image(&self, reference: &str) -> Result<ByteStream, ServiceError> {
        self.context.authorise(OperationName::IMAGE_EXPORT)?;
        let turn = turn(&self.context.shared).await?;
        Ok(until_ended(self.context.shared.ports.images.export_image(reference).await?, turn))
    }

    /// All files of a running VM's root as a tar stream, of one moment: what writes to its disk waits until the changes against
    /// its image are read. Sockets and files called `.wh.*` are left out and told. Slow readers are ended as in [`Self::image`].
    ///
    /// # Errors
    /// [`ServiceError::NotRunning`]; [`ServiceError::ExportsBusy`]; storage errors.
    pub async fn vm(&self, vm: &VmRef) -> Result<PulledArchive, ServiceError> {
        let Layer { archive, base, turn, _guest } = self.layer(vm, OperationName::VM_EXPORT).await?;
        let PulledArchive { data, left_out } = archive;
        let what = format!("the VM `{vm}`");
        let data = self.context.shared.ports.images.export_files(&what, &base, data).await?;
        Ok(PulledArchive { data: until_ended(data, turn), left_out })
    }

    /// The differences between a running VM's root and its image, of one moment.
    ///
    /// # Errors
    /// [`ServiceError::NotRunning`]; [`ServiceError::ExportsBusy`]; storage errors.
    pub async fn changes(&self, vm: &VmRef) -> Result<RootChanges, ServiceError> {
        let Layer { archive, base, turn: _turn, _guest } = self.layer(vm, OperationName::VM_CHANGES).await?;
        let changes = self.context.shared.ports.images.layer_changes(&base, archive.data).await?;
        Ok(RootChanges { changes, left_out: archive.left_out.await.ok() })
    }

    /// The changes of a running VM's root as a layer.
    async fn layer(&self, vm: &VmRef, operation: OperationName) -> Result<Layer, ServiceError> {
        self.context.authorise(operation)?;
        let handle = self.context.owned(vm)?;
        let base = handle.record().image_digest;
        // Before the guest is asked: from then on its writers stand still until the layer is read.
        let turn = turn(&self.context.shared).await?;
        let guest = handle.guest(&self.context.shared).await?;
        let PulledArchive { data, left_out } = guest.pull_layer().await?;
        Ok(Layer { archive: PulledArchive { data: paced(data), left_out }, base, turn, _guest: guest })
    }
}

/// Changes of a VM's root on their way out of its guest.
struct Layer {
    archive: PulledArchive,
    /// Digest of the image below.
    base: String,
    turn: OwnedSemaphorePermit,
    /// Keeps idle care away while the layer is read, which may take minutes.
    _guest: GuestLease,
}

/// The right to make an archive or a list of changes, each of which takes a thread and the memory of all names of an image.
async fn turn(shared: &Shared) -> Result<OwnedSemaphorePermit, ServiceError> {
    let free = Arc::clone(&shared.export_turns).acquire_owned();
    match tokio::time::timeout(shared.settings.export_patience, free).await {
        Ok(turn) => turn.map_err(|_| ServiceError::ShuttingDown),
        Err(_) => Err(ServiceError::ExportsBusy { most: EXPORTS_AT_ONCE }),
    }
}

/// A stream that gives its turn back when it is dropped.
fn until_ended(data: ByteStream, turn: OwnedSemaphorePermit) -> ByteStream {
    Box::pin(data.map(move |part| {
        let _turn = &turn;
        part
    }))
}
