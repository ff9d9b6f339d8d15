//! The host, the server and its templates.

use hyper::Method;
use microvm_api::progress::ProgressLine;
use microvm_api::system::{Doctor, HostInfo, Liveness, TemplateList, TemplateText};
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

    /// All templates by name, and the files that cannot be used.
    pub async fn templates(&self) -> Result<TemplateList, ClientError> {
        self.get("/templates", "listing templates").await
    }

    /// Checks the text of a template without keeping it.
    pub async fn validate_template(&self, name: &str, text: &TemplateText) -> Result<Template, ClientError> {
        let path = format!("/templates/{}/validate", segment(name));
        self.json(Method::POST, &path, Some(text), "checking a template").await
    }

    /// Keeps the text of a template for all VMs to come.
    pub async fn put_template(&self, name: &str, text: &TemplateText) -> Result<Template, ClientError> {
        let path = format!("/templates/{}", segment(name));
        self.json(Method::PUT, &path, Some(text), "keeping a template").await
    }

    /// Removes a template that was kept.
    pub async fn remove_template(&self, name: &str) -> Result<(), ClientError> {
        let path = format!("/templates/{}", segment(name));
        self.empty(Method::DELETE, &path, None::<&()>, "removing a template").await
    }

    /// One template.
    pub async fn template(&self, name: &str) -> Result<Template, ClientError> {
        self.get(&format!("/templates/{}", segment(name)), "reading a template").await
    }
}
