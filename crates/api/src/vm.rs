//! VMs.

use std::collections::BTreeMap;

use microvm_types::files::LeftOut;
use microvm_types::guest::GuestHealth;
use microvm_types::image::ChangedPath;
use microvm_types::share::{Share, ShareChanges};
use microvm_types::template::{NetworkMode, Overrides};
pub use microvm_types::vm::Counters;
use microvm_types::vm::{Limits, Origin, Rest};
use microvm_types::{Name, PathStyle, Phase, ProcessId, StopReason, Unreadable, VmId, VolumeMount};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// One VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Vm {
    /// Its id.
    pub id: VmId,
    /// Its name.
    pub name: Name,
    /// Where it is in its life.
    pub state: Phase,
    /// The same as `state`, for clients that read this name.
    pub status: Phase,
    /// Virtual processors.
    pub vcpus: u32,
    /// Memory in MiB, for clients that read this name.
    pub memory_mb: u32,
    /// Memory that it has now, in MiB: at most `memory_max_mib`.
    pub memory_mib: u32,
    /// Memory of its machine in MiB: the most that a resize can give it.
    #[serde(default)]
    pub memory_max_mib: u32,
    /// Time from its own launch until its agent answered, the last time it started, in milliseconds; absent: it never did, or
    /// an older server started it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot_time_ms: Option<u64>,
    /// Size of its scratch disk in MiB.
    pub disk_mib: u32,
    /// Name of its template.
    pub template: String,
    /// Image it was made from, as it was asked for.
    pub image: String,
    /// Digest of that image.
    pub image_digest: String,
    /// Kernel it boots, as it was asked for.
    pub kernel: String,
    /// Network mode.
    pub network: NetworkMode,
    /// Folders of the host that it sees.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub shares: Vec<Share>,
    /// Way in which its programs notice changes that the host makes in these folders; absent without folders.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub share_changes: Option<ShareChanges>,
    /// Named volumes that it has. A fork or a restored VM has copies of its own of those that are not read-only.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub volumes: Vec<VolumeMount>,
    /// Labels, for filters.
    pub labels: BTreeMap<String, String>,
    /// Free text of its owner's.
    pub metadata: BTreeMap<String, String>,
    /// Limits of its life and its idle time.
    pub limits: Limits,
    /// When it was created (RFC 3339 with offset).
    pub created_at: String,
    /// When it last changed (RFC 3339 with offset).
    pub updated_at: String,
    /// When it last started to run (RFC 3339 with offset).
    pub started_at: Option<String>,
    /// Why it failed, while it is `failed`.
    pub failure: Option<String>,
    /// Last time that it stopped, hibernated or failed, also while it runs again; absent: it never did, or an older server did
    /// not note it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_stop: Option<LastStop>,
    /// Time of the planned shutdown (RFC 3339 with offset); absent if none is planned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shutdown_at: Option<String>,
    /// True if its agent answers; false in every state but `running`.
    #[serde(default)]
    pub reachable: bool,
    /// Since when it runs without an agent that answers (RFC 3339 with offset); the server goes on trying.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unreachable_since: Option<String>,
    /// Last observation of its agent when it was lost.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unreachable_reason: Option<String>,
    /// Way in which it was created.
    #[serde(default)]
    pub origin: Origin,
    /// Kind of rest from which the next request wakes it; absent: it does not rest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rest: Option<Rest>,
    /// Syntax of the guest's paths; absent: `posix`, and while its agent does not answer.
    #[serde(default, skip_serializing_if = "PathStyle::is_posix")]
    pub path_style: PathStyle,
}

/// One time that a VM stopped, hibernated or failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LastStop {
    /// Reason.
    pub reason: StopReason,
    /// When (RFC 3339 with offset); of a stop under way, when it was asked for; of what happened while no server ran, when a server
    /// noticed it.
    pub at: String,
    /// What was observed, where there is more to say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}

/// Some VMs, in order of creation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VmList {
    /// The VMs.
    pub vms: Vec<Vm>,
    /// Those that cannot be read; the list is not whole then.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unreadable: Vec<Unreadable>,
}

/// A VM to be made. What is absent comes from the template.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateVm {
    /// Its name; one is made up if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<Name>,
    /// Name of the template; the server's default if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub template: Option<String>,
    /// Virtual processors.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vcpus: Option<u32>,
    /// Memory in MiB; `memory_mb` is understood too. `overrides.memory_max_mib` is the most that a resize can give it later.
    #[serde(default, alias = "memory_mb", skip_serializing_if = "Option::is_none")]
    pub memory_mib: Option<u32>,
    /// Whatever else it changes of the template. `vcpus` and `memory_mib` above win over the same fields here.
    #[serde(default)]
    pub overrides: Overrides,
    /// Labels, for filters.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Free text, never interpreted.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub metadata: BTreeMap<String, String>,
    /// Limits of its life and its idle time.
    #[serde(default)]
    pub limits: Limits,
    /// Start it at once; then the answer comes when its agent answers.
    #[serde(default = "yes")]
    pub start: bool,
    /// Boot it, instead of forking it from the golden snapshot of its template.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub cold: bool,
    /// Take it out of this pool; then only name, labels, metadata and limits can be chosen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool: Option<Name>,
}

impl Default for CreateVm {
    fn default() -> Self {
        Self {
            name: None,
            template: None,
            vcpus: None,
            memory_mib: None,
            overrides: Overrides::default(),
            labels: BTreeMap::new(),
            metadata: BTreeMap::new(),
            limits: Limits::default(),
            start: true,
            cold: false,
            pool: None,
        }
    }
}

const fn yes() -> bool {
    true
}

/// Options of a stop.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct StopVm {
    /// End the machine at once instead of asking the guest.
    #[serde(default)]
    pub force: bool,
    /// Seconds the guest gets to end its processes.
    #[serde(default = "default_grace")]
    pub grace_seconds: u64,
}

const fn default_grace() -> u64 {
    10
}

impl Default for StopVm {
    fn default() -> Self {
        Self { force: false, grace_seconds: default_grace() }
    }
}

/// A new size for a running VM; at least one of both is given.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ResizeVm {
    /// Memory in MiB, at most `memory_max_mib` of the VM, and at least a 16th of that and 64; `memory_mb` is understood too.
    #[serde(default, alias = "memory_mb", skip_serializing_if = "Option::is_none")]
    pub memory_mib: Option<u32>,
    /// Virtual processors. No hypervisor here can change them while the VM runs: another number than it has is refused
    /// (`no_processor_hotplug`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vcpus: Option<u32>,
}

/// How a VM is restarted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RestartVm {
    /// End the machine at once instead of asking the guest.
    #[serde(default)]
    pub force: bool,
    /// Seconds the guest gets to end its processes.
    #[serde(default = "default_grace")]
    pub grace_seconds: u64,
}

impl Default for RestartVm {
    fn default() -> Self {
        Self { force: false, grace_seconds: default_grace() }
    }
}

/// A signal for a whole VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct KillVm {
    /// Number of the signal, 1 to 64; 9 (SIGKILL) if absent.
    #[serde(default = "sigkill")]
    pub signal: u8,
}

impl Default for KillVm {
    fn default() -> Self {
        Self { signal: sigkill() }
    }
}

const fn sigkill() -> u8 {
    9
}

/// Outcome of a signal for a whole VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Killed {
    /// Processes that got the signal; empty if the machine was ended.
    pub processes: Vec<ProcessId>,
    /// The VM after it.
    pub vm: Vm,
}

/// A new name for a VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RenameVm {
    /// The name.
    pub name: Name,
}

/// Changes of a VM's limits, labels and metadata. What is absent stays.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct UpdateVm {
    /// Labels that are set; null removes one.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, Option<String>>,
    /// Metadata that are set; null removes one.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub metadata: BTreeMap<String, Option<String>>,
    /// Limits that are set.
    #[serde(default)]
    pub limits: UpdateLimits,
}

/// Limits of a VM that are set; 0 removes one, absent keeps it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct UpdateLimits {
    /// Seconds without use after which it is stopped, or deleted if `ephemeral`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle_seconds: Option<u64>,
    /// Seconds after its creation at which it is stopped, or deleted if `ephemeral`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lifetime_seconds: Option<u64>,
    /// Instead of `lifetime_seconds`: seconds from now, at least 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lifetime_left_seconds: Option<u64>,
    /// Seconds without use after which it is paused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pause_seconds: Option<u64>,
    /// Seconds without use after which it is hibernated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hibernate_seconds: Option<u64>,
    /// Whether it is deleted, instead of stopped, when a limit passes, its guest powers off or it fails.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ephemeral: Option<bool>,
}

/// Differences between the root of a VM and its image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VmChanges {
    /// Every path that differs, in order.
    pub changes: Vec<ChangedPath>,
    /// Files that the list does not tell of, and why; absent where the guest's agent is older than this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub left_out: Option<LeftOut>,
}

/// Resource use of a running VM.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Stats {
    /// Id of the VM.
    pub vm: VmId,
    /// Its name.
    pub name: Name,
    /// Its state.
    pub state: Phase,
    /// Virtual processors.
    pub vcpus: u32,
    /// Memory that it is to have now, in MiB.
    pub memory_mib: u32,
    /// Memory that its guest uses now, in MiB, as the balloon of its machine has it: more than `memory_mib` while the guest gives memory
    /// up, or if it does not. Absent without a machine or a balloon.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_actual_mib: Option<u32>,
    /// Milliseconds since it last started to run; absent without a machine.
    pub uptime_ms: Option<u64>,
    /// Counters of the host, from its machine's start; all 0 without a machine.
    pub counters: Counters,
    /// Numbers of its guest; absent if the guest does not run or did not answer within a second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guest: Option<GuestHealth>,
}

/// Something that happened to a VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Event {
    /// When (RFC 3339 with offset).
    pub at: String,
    /// Which VM.
    pub vm: VmId,
    /// Its name.
    pub name: Name,
    /// Its phase after the event.
    pub state: Phase,
    /// True if the VM was deleted; no event follows.
    pub gone: bool,
    /// Why, where there is more to say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// Reason of an end: the VM stopped, hibernated, failed, or is deleted because a limit passed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop_reason: Option<StopReason>,
}

/// One message of the events WebSocket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(untagged)]
pub enum EventMessage {
    /// Something happened.
    Event(Event),
    /// The reader was too slow: so many events are left out here. A list of all VMs shows what they came to.
    Missed {
        /// How many.
        missed: u64,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_request_is_complete_and_mistakes_are_found() {
        let request: CreateVm = serde_json::from_str("{}").unwrap();
        assert_eq!(request, CreateVm::default());
        assert!(request.start);
        let request: CreateVm = serde_json::from_str(r#"{"memory_mb": 256, "vcpus": 2}"#).unwrap();
        assert_eq!((request.memory_mib, request.vcpus), (Some(256), Some(2)));
        for wrong in [r#"{"vcpu": 2}"#, r#"{"vcpus": -2}"#, r#"{"name": "a b"}"#, r#"{"name": ""}"#] {
            assert!(serde_json::from_str::<CreateVm>(wrong).is_err(), "{wrong}");
        }
    }
}
