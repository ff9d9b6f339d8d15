//! The host, the server and its templates.

use microvm_api::disk_usage::{DiskUsage, PruneSystem, PrunedSystem};
use microvm_api::operation::{ComponentRef, TemplateRef};
use microvm_api::operations::{system, template};
use microvm_api::progress::ProgressLine;
use microvm_api::system::{Component, Doctor, Health, HostInfo, Liveness, TemplateList, TemplateText};
use microvm_types::template::Template;

use crate::call::Whole;
use crate::client::Client;
use crate::error::ClientError;
use crate::lines::Lines;

/// Each method is one request; see the REST reference for what it does. All fail with [`ClientError`].
#[expect(clippy::missing_errors_doc, reason = "said once for all above")]
impl Client {
    /// Succeeds if a server answers, whatever it can do now.
    pub async fn live(&self) -> Result<Liveness, ClientError> {
        self.ask::<system::Live>(&()).await
    }

    /// Succeeds if the server can serve requests.
    pub async fn ready(&self) -> Result<Liveness, ClientError> {
        self.ask::<system::Ready>(&()).await
    }

    /// Health of the server, component by component.
    pub async fn health(&self) -> Result<Health, ClientError> {
        self.ask::<system::Health>(&()).await
    }

    /// Health of one component of the server.
    pub async fn health_of(&self, component: &str) -> Result<Component, ClientError> {
        self.ask::<system::HealthOf>(&ComponentRef::from(component)).await
    }

    /// The host.
    pub async fn host_info(&self) -> Result<HostInfo, ClientError> {
        self.ask::<system::Info>(&()).await
    }

    /// Disk space below the root of the server, by kind.
    pub async fn disk_usage(&self) -> Result<DiskUsage, ClientError> {
        self.ask::<system::DiskUsage>(&()).await
    }

    /// Removes what nothing holds.
    pub async fn prune_system(&self, query: &PruneSystem) -> Result<PrunedSystem, ClientError> {
        self.call::<system::Prune>(&(), query, ()).await
    }

    /// Counters and histograms, as Prometheus reads them.
    pub async fn metrics(&self) -> Result<Whole, ClientError> {
        self.ask::<system::Metrics>(&()).await
    }

    /// Ends the server; it may still be ending when this returns.
    pub async fn stop_server(&self) -> Result<(), ClientError> {
        self.ask::<system::Stop>(&()).await
    }

    /// Findings about the host: what is in order and what is not.
    pub async fn doctor(&self) -> Result<Doctor, ClientError> {
        self.ask::<system::Doctor>(&()).await
    }

    /// Verifies every image and kernel; the lines tell how far it is.
    pub async fn verify(&self) -> Result<Lines<ProgressLine>, ClientError> {
        self.ask::<system::Verify>(&()).await
    }

    /// The interface as an OpenAPI document.
    pub async fn openapi(&self) -> Result<serde_json::Value, ClientError> {
        self.ask::<system::OpenApi>(&()).await
    }

    /// All templates by name, and the files that cannot be used.
    pub async fn templates(&self) -> Result<TemplateList, ClientError> {
        self.ask::<template::List>(&()).await
    }

    /// One template.
    pub async fn template(&self, name: &str) -> Result<Template, ClientError> {
        self.ask::<template::Get>(&TemplateRef::from(name)).await
    }

    /// Checks the text of a template without keeping it.
    pub async fn validate_template(&self, name: &str, text: &TemplateText) -> Result<Template, ClientError> {
        self.tell::<template::Validate>(&TemplateRef::from(name), text).await
    }

    /// Keeps the text of a template for all VMs to come.
    pub async fn put_template(&self, name: &str, text: &TemplateText) -> Result<Template, ClientError> {
        self.tell::<template::Put>(&TemplateRef::from(name), text).await
    }

    /// Removes a template that was kept.
    pub async fn remove_template(&self, name: &str) -> Result<(), ClientError> {
        self.ask::<template::Remove>(&TemplateRef::from(name)).await
    }
}
