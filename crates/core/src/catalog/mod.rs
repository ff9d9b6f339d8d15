//! Images, kernels and templates: what VMs are made of.

pub(crate) mod between;
mod build_vm;
mod disk;
mod export;
mod image_build;
mod paced;
mod templates;
mod users;

use microvm_ports::Progress;
use microvm_ports::storage::{ImageInfo, KernelInfo, KernelSource};
use microvm_types::{Listed, OperationName, Unreadable};

pub use self::export::{Exports, RootChanges};
pub use self::image_build::{ImageBase, ImageRecipe};
use crate::context::Context;
use crate::error::ServiceError;
use crate::vms::reconcile;

/// Images, kernels and templates.
#[derive(Debug, Clone)]
pub struct Catalog {
    context: Context,
}

impl Catalog {
    pub(crate) fn new(context: &Context) -> Self {
        Self { context: context.clone() }
    }

    /// All images, newest first.
    ///
    /// # Errors
    /// Storage errors.
    pub async fn images(&self) -> Result<Listed<ImageInfo>, ServiceError> {
        self.context.authorise(OperationName::IMAGE_LIST)?;
        Ok(self.context.shared.ports.images.images().await?)
    }

    /// All kernels by name.
    ///
    /// # Errors
    /// Storage errors.
    pub async fn kernels(&self) -> Result<Listed<KernelInfo>, ServiceError> {
        self.context.authorise(OperationName::KERNEL_LIST)?;
        Ok(self.context.shared.ports.kernels.kernels().await?)
    }

    /// Adds a kernel, or puts another one under a name.
    ///
    /// # Errors
    /// Storage errors.
    pub async fn add_kernel(
        &self,
        name: &str,
        source: &KernelSource,
        progress: Progress,
    ) -> Result<KernelInfo, ServiceError> {
        self.context.authorise(OperationName::KERNEL_ADD)?;
        Ok(self.context.shared.ports.kernels.add_kernel(name, source, progress).await?)
    }

    /// Removes a kernel. VMs that boot it start no more until there is one of that name.
    ///
    /// # Errors
    /// Storage errors.
    pub async fn remove_kernel(&self, name: &str) -> Result<(), ServiceError> {
        self.context.authorise(OperationName::KERNEL_REMOVE)?;
        Ok(self.context.shared.ports.kernels.remove_kernel(name).await?)
    }

    /// Removes an image, and the golden snapshots made of it, unless VMs or other snapshots depend on it.
    ///
    /// # Errors
    /// Storage errors; `InUse` names VMs and snapshots that depend on it.
    pub async fn remove_image(&self, reference: &str) -> Result<(), ServiceError> {
        self.context.authorise(OperationName::IMAGE_REMOVE)?;
        users::remove(self, reference).await
    }

    /// Removes images without a name that no VM depends on, with their golden snapshots, and leftovers; returns the bytes freed.
    ///
    /// # Errors
    /// Storage errors; [`ServiceError::UsersUnknown`] while there are VMs or snapshots whose images are not known.
    pub async fn collect_garbage(&self) -> Result<u64, ServiceError> {
        self.context.authorise(OperationName::IMAGE_PRUNE)?;
        self.require_known_users().await?;
        between::remove_strays(self).await?;
        let freed = users::remove_goldens_of_unnamed(self).await?;
        Ok(freed + self.context.shared.ports.images.collect_garbage(&self.images_in_use()).await?)
    }

    /// Reads every byte of all images, kernels and snapshots; every finding as a sentence, none if nothing is wrong.
    ///
    /// # Errors
    /// Storage errors that are no damage.
    pub async fn verify(&self, progress: Progress) -> Result<Vec<String>, ServiceError> {
        self.context.authorise(OperationName::SYSTEM_VERIFY)?;
        let mut findings = self.context.shared.ports.images.verify_all(progress.clone()).await?;
        findings.extend(self.context.shared.ports.snapshots.verify_snapshots(progress).await?);
        Ok(findings)
    }

    /// Refuses while a VM or snapshot is stored whose image is not known.
    pub(crate) async fn require_known_users(&self) -> Result<(), ServiceError> {
        let shared = &self.context.shared;
        let unreadable = |kind: &str, part: Vec<Unreadable>| {
            part.first().map(|one| format!("the record of the {kind} {} cannot be read", one.name))
        };
        let mut what = unreadable("VM", shared.unreadable.vms.all());
        what = what.or_else(|| unreadable("snapshot", shared.unreadable.snapshots.all()));
        if what.is_none() {
            let strays = reconcile::strays(shared).await?;
            what = strays.first().map(|stray| format!("the VM {} has a disk and no record", stray.id));
        }
        what.map_or(Ok(()), |what| Err(ServiceError::UsersUnknown { what }))
    }

    /// True if a VM or a snapshot of any tenant needs an image. Golden snapshots do not count: they are made anew.
    fn is_needed(&self, digest: &str) -> bool {
        users::of(self).iter().any(|user| user.digest == digest)
    }

    /// Those of every tenant.
    fn images_in_use(&self) -> Vec<String> {
        let shared = &self.context.shared;
        let of_snapshots = shared.snapshots.all().into_iter().map(|snapshot| snapshot.record.image_digest);
        let of_vms = shared.registry.all().into_iter().map(|handle| handle.record().image_digest);
        of_vms.chain(of_snapshots).collect()
    }
}
