//! Images, kernels and templates: what VMs are made of.

mod image_build;
mod templates;

use microvm_ports::{ImageStore, KernelStore};

pub use self::image_build::{ImageBase, ImageRecipe};
use crate::context::Context;
use crate::error::ServiceError;

/// Images, kernels and templates.
#[derive(Debug, Clone)]
pub struct Catalog {
    context: Context,
}

impl Catalog {
    pub(crate) fn new(context: &Context) -> Self {
        Self { context: context.clone() }
    }

    /// The image store.
    #[must_use]
    pub fn images(&self) -> &dyn ImageStore {
        &*self.context.shared.ports.images
    }

    /// The kernel store.
    #[must_use]
    pub fn kernels(&self) -> &dyn KernelStore {
        &*self.context.shared.ports.kernels
    }

    /// Removes an image unless VMs depend on it.
    ///
    /// # Errors
    /// Storage errors, `InUse` among them.
    pub async fn remove_image(&self, reference: &str) -> Result<(), ServiceError> {
        Ok(self.images().remove_image(reference, &self.images_in_use()).await?)
    }

    /// Removes images without a name that no VM depends on, and leftovers; returns the bytes freed.
    ///
    /// # Errors
    /// Storage errors.
    pub async fn collect_garbage(&self) -> Result<u64, ServiceError> {
        Ok(self.images().collect_garbage(&self.images_in_use()).await?)
    }

    /// Those of every tenant.
    fn images_in_use(&self) -> Vec<String> {
        let shared = &self.context.shared;
        let of_snapshots = shared.snapshots.all().into_iter().map(|snapshot| snapshot.record.image_digest);
        let of_vms = shared.registry.all().into_iter().map(|handle| handle.record().image_digest);
        of_vms.chain(of_snapshots).collect()
    }
}
