//! Named volumes.

use microvm_api::operation::VolumeRef;
use microvm_api::operations::volume;
use microvm_api::volume::{CreateVolume, PrunedVolumes, Volume, VolumeList};
use microvm_types::Name;

use crate::client::Client;
use crate::error::ClientError;

fn path_of(volume: &Name) -> VolumeRef {
    volume.as_str().into()
}

/// Each method is one request; see the REST reference for what it does. All fail with [`ClientError`].
#[expect(clippy::missing_errors_doc, reason = "said once for all above")]
impl Client {
    /// All volumes in order of creation.
    pub async fn volumes(&self) -> Result<VolumeList, ClientError> {
        self.ask::<volume::List>(&()).await
    }

    /// One volume by name or id.
    pub async fn volume(&self, name: &Name) -> Result<Volume, ClientError> {
        self.ask::<volume::Get>(&path_of(name)).await
    }

    /// Creates a volume with an empty file system.
    pub async fn create_volume(&self, request: &CreateVolume) -> Result<Volume, ClientError> {
        self.tell::<volume::Create>(&(), request).await
    }

    /// Removes a volume with all that is on it.
    pub async fn remove_volume(&self, name: &Name) -> Result<(), ClientError> {
        self.ask::<volume::Remove>(&path_of(name)).await
    }

    /// Removes all volumes that no VM has.
    pub async fn prune_volumes(&self) -> Result<PrunedVolumes, ClientError> {
        self.ask::<volume::Prune>(&()).await
    }
}
