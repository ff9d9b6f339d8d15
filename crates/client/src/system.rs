//! The host, the server and its templates.

use hyper::Method;
use microvm_api::progress::ProgressLine;
use microvm_api::system::{Doctor, HostInfo, Liveness, TemplateList};
use microvm_types::template::Template;

use crate::client::Client;
use crate::error::ClientError;
use crate::images::segment;
use crate::lines::Lines;

/// All fail with [`ClientError`].
#[expect(clippy::missing_errors_doc, reason = "said once for all above")]
impl Client {
    /// Whether the server can serve requests.
    pub async fn ready(&self) -> Result<Liveness, ClientError> {
        self.get("/health/ready", "asking the server").await
    }

    /// The host.
    pub async fn host_info(&self) -> Result<HostInfo, ClientError> {
        self.get("/system/info", "asking the server").await
    }

    /// What is in order on the host and what is not.
    pub async fn doctor(&self) -> Result<Doctor, ClientError> {
        self.get("/system/doctor", "examining the host").await
    }

    /// Verifies every image and kernel; the lines tell how far it is.
    pub async fn verify(&self) -> Result<Lines<ProgressLine>, ClientError> {
        Ok(Lines::new(self.send_json(Method::POST, "/system/verify", None::<&()>, "verifying").await?))
    }

    /// The interface as an OpenAPI document.
    pub async fn openapi(&self) -> Result<serde_json::Value, ClientError> {
        self.get("/openapi.json", "asking the server").await
    }

    /// All templates by name.
    pub async fn templates(&self) -> Result<Vec<Template>, ClientError> {
        let list: TemplateList = self.get("/templates", "listing templates").await?;
        Ok(list.templates)
    }

    /// One template.
    pub async fn template(&self, name: &str) -> Result<Template, ClientError> {
        self.get(&format!("/templates/{}", segment(name)), "reading a template").await
    }
}
