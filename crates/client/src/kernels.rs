//! Kernels.

use hyper::Method;
use microvm_api::kernel::{AddKernel, Kernel, KernelList};
use microvm_api::progress::ProgressLine;

use crate::client::Client;
use crate::error::ClientError;
use crate::images::segment;
use crate::lines::Lines;

/// All fail with [`ClientError`].
#[expect(clippy::missing_errors_doc, reason = "said once for all above")]
impl Client {
    /// All kernels by name.
    pub async fn kernels(&self) -> Result<KernelList, ClientError> {
        self.get("/kernels", "listing kernels").await
    }

    /// One kernel by name.
    pub async fn kernel(&self, name: &str) -> Result<Kernel, ClientError> {
        self.get(&format!("/kernels/{}", segment(name)), "reading a kernel").await
    }

    /// Adds a kernel; the lines tell how far it is.
    pub async fn add_kernel(&self, request: &AddKernel) -> Result<Lines<ProgressLine>, ClientError> {
        let response = self.send_json(Method::POST, "/kernels", Some(request), "adding a kernel").await?;
        Ok(Lines::new(response))
    }

    /// Removes a kernel.
    pub async fn remove_kernel(&self, name: &str) -> Result<(), ClientError> {
        let path = format!("/kernels/{}", segment(name));
        self.empty(Method::DELETE, &path, None::<&()>, "removing a kernel").await
    }
}
