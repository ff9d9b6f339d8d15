//! Pools.

use hyper::Method;
use microvm_api::pool::{Acquire, Acquired, CreatePool, Pool, PoolList, ResizePool};
use microvm_types::Name;

use crate::client::Client;
use crate::error::ClientError;

/// Each method is one request; see the REST reference for what it does. All fail with [`ClientError`].
#[expect(clippy::missing_errors_doc, reason = "said once for all above")]
impl Client {
    /// All pools by name.
    pub async fn list_pools(&self) -> Result<PoolList, ClientError> {
        self.get("/pools", "listing pools").await
    }

    /// One pool.
    pub async fn pool(&self, name: &Name) -> Result<Pool, ClientError> {
        self.get(&format!("/pools/{name}"), "reading a pool").await
    }

    /// Makes a pool; it is filled in the background.
    pub async fn create_pool(&self, request: &CreatePool) -> Result<Pool, ClientError> {
        self.json(Method::POST, "/pools", Some(request), "making a pool").await
    }

    /// Changes the sizes of a pool.
    pub async fn resize_pool(&self, name: &Name, request: &ResizePool) -> Result<Pool, ClientError> {
        self.json(Method::POST, &format!("/pools/{name}/resize"), Some(request), "changing a pool").await
    }

    /// Removes a pool with the VMs that wait in it.
    pub async fn remove_pool(&self, name: &Name) -> Result<(), ClientError> {
        self.empty(Method::DELETE, &format!("/pools/{name}"), None::<&()>, "removing a pool").await
    }

    /// Hands out a VM of a pool.
    pub async fn acquire(&self, pool: &Name, request: &Acquire) -> Result<Acquired, ClientError> {
        self.json(Method::POST, &format!("/pools/{pool}/acquire"), Some(request), "taking a VM of a pool")
            .await
    }
}
