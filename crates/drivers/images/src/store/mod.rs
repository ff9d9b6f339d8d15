//! The store: opens the directories and runs blocking work for the ports.

mod add;
mod export;
mod image_port;
mod kernel_port;
mod verify;

use std::sync::Arc;

use camino::Utf8PathBuf;
use microvm_durable::cancel::{Cancel, blocking};
use microvm_durable::files::{canonical, make_directory};
use microvm_durable::workspace::{Workspace, remove_leftovers};
use microvm_ports::{Clock, StorageError};

use crate::config::{ArchiveLimits, ImagesConfig};
use crate::erofs::TreeMemory;
use crate::images::ImageFiles;
use crate::kernels::KernelFiles;

/// Images and kernels below one directory. Cheap to clone; several processes may use one directory.
#[derive(Clone)]
pub struct Images(Arc<Inner>);

/// State shared by all clones of a store.
struct Inner {
    root: Utf8PathBuf,
    /// For work in progress.
    work: Utf8PathBuf,
    /// For packages that were fetched; all of it can be removed at any time.
    cache: Utf8PathBuf,
    limits: ArchiveLimits,
    images: ImageFiles,
    kernels: KernelFiles,
    /// For the trees of all images that are being made.
    tree_memory: TreeMemory,
}

impl Images {
    /// Opens a store, makes what is missing, and removes what dead processes left. Blocks for some milliseconds.
    ///
    /// # Errors
    /// [`StorageError::Io`] or [`StorageError::DiskFull`] if the directory cannot be used.
    pub fn open(config: ImagesConfig, clock: Arc<dyn Clock>) -> Result<Self, StorageError> {
        make_directory(&config.root, 0o711)?;
        let root = canonical(&config.root)?;
        let directory = |name: &str| {
            let path = root.join(name);
            // For the server's user alone: images and kernels may hold private content, and files in them
            // keep set-id bits. A VMM under its own user gets its files by mounts that are opened before the change of
            // user, so it needs no way to them.
            make_directory(&path, 0o700).map(|()| path)
        };
        let (images, names) = (directory("images")?, directory("images/names")?);
        let (kernels, work) = (directory("kernels")?, directory("tmp")?);
        let (builds, cache) = (directory("images/builds")?, directory("cache")?);
        remove_leftovers(&work)?;
        Ok(Self(Arc::new(Inner {
            limits: config.limits,
            images: ImageFiles::new(images, names, builds, work.clone(), Arc::clone(&clock)),
            kernels: KernelFiles::new(kernels, work.clone(), config.agent, clock),
            tree_memory: TreeMemory::of(config.limits.memory),
            root,
            work,
            cache,
        })))
    }

    /// Runs blocking work on the store. If the future is dropped the work is told to stop and cleans up after itself.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Inner, Cancel) -> Result<T, StorageError> + Send + 'static,
    ) -> Result<T, StorageError> {
        let inner = Arc::clone(&self.0);
        blocking(&self.0.root, move |cancel| work(&inner, cancel)).await
    }
}

impl Inner {
    /// A directory for work in progress.
    fn workspace(&self) -> Result<Workspace, StorageError> {
        Workspace::create(&self.work)
    }
}

impl std::fmt::Debug for Images {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Images").field("root", &self.0.root).finish_non_exhaustive()
    }
}
