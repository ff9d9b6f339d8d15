//! Images, kernels and templates: what VMs are made of.

mod image_build;
mod templates;

use microvm_ports::{ImageStore, KernelStore, Progress};

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

    /// Reads every byte of all images, kernels and snapshots; every finding as a sentence, none if nothing is wrong.
    ///
    /// # Errors
    /// Storage errors that are no damage.
    pub async fn verify(&self, progress: Progress) -> Result<Vec<String>, ServiceError> {
        let mut findings = self.images().verify_all(progress.clone()).await?;
        findings.extend(self.context.shared.ports.snapshots.verify_snapshots(progress).await?);
        Ok(findings)
    }

    /// Those of every tenant.
    fn images_in_use(&self) -> Vec<String> {
        let shared = &self.context.shared;
        let of_snapshots = shared.snapshots.all().into_iter().map(|snapshot| snapshot.record.image_digest);
        let of_vms = shared.registry.all().into_iter().map(|handle| handle.record().image_digest);
        of_vms.chain(of_snapshots).collect()
    }
}
