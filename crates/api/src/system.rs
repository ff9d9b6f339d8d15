//! The host and the server.

use std::collections::BTreeMap;

use microvm_types::guest::Verdict;
use microvm_types::template::Template;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::advice::Advice;

/// A resource in bytes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Resource {
    /// All there is.
    pub total: u64,
    /// Free resources.
    pub available: u64,
    /// The same as `available`, for clients that read this name.
    pub free: u64,
    /// In use, 0 to 100.
    pub percent: f64,
}

/// The host.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct HostInfo {
    /// Operating system and kernel release.
    pub platform: String,
    /// Version of this program.
    pub version: String,
    /// Process number of the server.
    pub server_pid: u32,
    /// Seconds since the server started.
    pub uptime_seconds: u64,
    /// Processors.
    pub cpu_count: u32,
    /// Memory.
    pub memory: Resource,
    /// The file system that holds the root directory.
    pub disk: Resource,
    /// Limits of VMs, as the operator set them or as the host allows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<VmLimits>,
}

/// Limits of one VM and of all VMs together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VmLimits {
    /// Processors of one VM.
    pub vcpus: u32,
    /// Memory of one VM in MiB.
    pub memory_mib: u32,
    /// Scratch disk or volume in MiB.
    pub disk_mib: u32,
    /// VMs together.
    pub vms: usize,
    /// Memory of all VMs together in MiB; absent: no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub total_memory_mib: Option<u64>,
    /// Snapshots of one VM without a name of their own.
    pub snapshots_per_vm: usize,
    /// Longest time limit of a command in seconds; absent from older servers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command_seconds: Option<u64>,
    /// Longest command in bytes; absent from older servers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command_bytes: Option<usize>,
}

/// Result of the probe of the hypervisor driver.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct HypervisorInfo {
    /// Name of the driver.
    pub driver: String,
    /// Version of the VMM program.
    pub version: String,
    /// Path of the VMM program.
    pub program: String,
    /// Accelerator in use.
    pub accelerator: String,
    /// Why this one, and what it costs.
    pub accelerator_reason: String,
    /// Confinement layers by name, with `on` or the reason why not.
    pub confinement: BTreeMap<String, String>,
}

/// Outcome of one check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum CheckStatus {
    /// As it should be.
    Ok,
    /// It works, but something is worth knowing.
    Warning,
    /// VMs cannot run until this is repaired.
    Failed,
}

/// One check of `doctor`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Check {
    /// Name of the check.
    pub name: String,
    /// The outcome.
    pub status: CheckStatus,
    /// Finding.
    pub detail: String,
    /// Remedy in words, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub advice: Option<String>,
    /// Remedies that are requests.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub remedies: Vec<Advice>,
}

/// Result of `doctor`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Doctor {
    /// The checks, in the order in which they matter.
    pub checks: Vec<Check>,
    /// Result of the driver's probe, if it succeeded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hypervisor: Option<HypervisorInfo>,
}

/// Liveness or readiness of the server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Liveness {
    /// `alive`, `ready` or `healthy`.
    pub status: String,
    /// Name of the service.
    pub service: String,
    /// Version of this program.
    pub version: String,
    /// When (RFC 3339 with offset).
    pub timestamp: String,
}

/// Health of the server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Health {
    /// The worst of its components.
    pub status: Verdict,
    /// The components that requests need.
    pub components: Vec<Component>,
    /// Version of this program.
    pub version: String,
    /// When (RFC 3339 with offset).
    pub timestamp: String,
}

/// One component of the server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Component {
    /// Its name: `store`, `hypervisor`, `disk` or `guests`.
    pub name: String,
    /// Judgement.
    pub status: Verdict,
    /// What was seen, in words.
    pub detail: String,
}

/// All templates by name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TemplateList {
    /// The templates.
    pub templates: Vec<Template>,
    /// Files that cannot be used; no VM is made of them, nor of another template of their name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub failed: Vec<FailedTemplate>,
}

/// A template file that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FailedTemplate {
    /// Its name: that of the file, without its ending.
    pub name: String,
    /// Reason.
    pub reason: String,
}

/// The text of a template, as its file holds it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TemplateText {
    /// YAML or JSON.
    pub text: String,
    /// Replace one of the same name.
    #[serde(default)]
    pub replace: bool,
}
