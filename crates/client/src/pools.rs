//! Pools.

use microvm_api::operation::PoolRef;
use microvm_api::operations::pool;
use microvm_api::pool::{Acquire, Acquired, CreatePool, Pool, PoolList, Release, Released, ResizePool};
use microvm_types::{Name, VmRef};

use crate::client::Client;
use crate::error::ClientError;

fn path_of(pool: &Name) -> PoolRef {
    pool.as_str().into()
}

/// Each method is one request; see the REST reference for what it does. All fail with [`ClientError`].
#[expect(clippy::missing_errors_doc, reason = "said once for all above")]
impl Client {
    /// All pools by name.
    pub async fn list_pools(&self) -> Result<PoolList, ClientError> {
        self.ask::<pool::List>(&()).await
    }

    /// One pool.
    pub async fn pool(&self, name: &Name) -> Result<Pool, ClientError> {
        self.ask::<pool::Get>(&path_of(name)).await
    }

    /// Makes a pool; it is filled in the background.
    pub async fn create_pool(&self, request: &CreatePool) -> Result<Pool, ClientError> {
        self.tell::<pool::Create>(&(), request).await
    }

    /// Changes the sizes of a pool.
    pub async fn resize_pool(&self, name: &Name, request: &ResizePool) -> Result<Pool, ClientError> {
        self.tell::<pool::Resize>(&path_of(name), request).await
    }

    /// Removes a pool with the VMs that wait in it.
    pub async fn remove_pool(&self, name: &Name) -> Result<(), ClientError> {
        self.ask::<pool::Remove>(&path_of(name)).await
    }

    /// Gives a VM back to its pool.
    pub async fn release(&self, pool: &Name, vm: &VmRef) -> Result<Released, ClientError> {
        self.tell::<pool::Release>(&path_of(pool), &Release { vm: vm.to_string() }).await
    }

    /// Hands out a running VM of a pool.
    pub async fn acquire(&self, pool: &Name, request: &Acquire) -> Result<Acquired, ClientError> {
        self.tell::<pool::Acquire>(&path_of(pool), request).await
    }
}
