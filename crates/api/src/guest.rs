//! A guest as its agent describes it.

use microvm_types::guest::{AgentInfo, GuestHealth, GuestProcess, SystemInfo, Verdict};
use microvm_types::{Name, Phase, ProcessId, VmId};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The agent answered.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Ping {
    /// Always true; a failure is a problem body.
    pub success: bool,
    /// Round trip on the channel in microseconds.
    pub round_trip_us: u64,
    /// Version of the agent, for clients that read this name.
    pub agent_version: String,
    /// The agent, as it described itself when the channel was opened.
    pub agent: AgentInfo,
}

/// The guest as a system.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct SystemInfoReply {
    /// Always true; a failure is a problem body.
    pub success: bool,
    /// The system, as the agent sees it.
    pub system_info: SystemInfo,
    /// When (RFC 3339 with offset).
    pub timestamp: String,
}

/// All processes of the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct GuestProcesses {
    /// Always true; a failure is a problem body.
    pub success: bool,
    /// The processes.
    pub processes: Vec<GuestProcess>,
    /// When (RFC 3339 with offset).
    pub timestamp: String,
}

/// Shutdown of a guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ShutdownGuest {
    /// End the machine at once instead of asking the guest.
    #[serde(default)]
    pub force: bool,
    /// Seconds from now until it is shut down, at most 604,800 (a week); `delay` is understood too.
    #[serde(default, alias = "delay")]
    pub delay_seconds: u64,
}

const fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// Start commands of a VM, in order, as far as they ran since it booted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct StartCommands {
    /// The commands. Those after one that failed did not run; those that went well are forgotten some minutes after their end.
    pub commands: Vec<StartCommand>,
}

/// One start command.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct StartCommand {
    /// The command; of a long one the first part.
    pub command: String,
    /// Bytes of the command that are left out; absent: none.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub command_omitted: u64,
    /// Its process: all that is kept of its output can be read under this id. Absent if it could not be started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub process: Option<ProcessId>,
    /// True if it ended with another code than 0, or by a signal, or could not be started.
    pub failed: bool,
    /// The reason, if it could not be started, or if the end of its output cannot be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Its exit code, 128 + signal, or 124 after a time-out; absent while it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i64>,
    /// End of its standard output, at most 2 KiB, if it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stdout: Option<String>,
    /// End of its standard error, at most 2 KiB, if it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stderr: Option<String>,
}

/// Health of a guest.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct HealthReply {
    /// Always true; a failure is a problem body.
    pub success: bool,
    /// Measurements of the agent.
    pub health: GuestHealth,
    /// Judgement: `unhealthy` from 95 % of memory or disk on; `degraded` from 85 % of processors, memory or disk on, or while
    /// start commands are not done.
    pub verdict: Verdict,
    /// When (RFC 3339 with offset).
    pub timestamp: String,
}

/// Health of all VMs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct GuestsHealth {
    /// VMs in order of creation. None is woken for the question.
    pub vms: Vec<HealthOfGuest>,
    /// When (RFC 3339 with offset).
    pub timestamp: String,
}

/// Health of one VM among all.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct HealthOfGuest {
    /// Its id.
    pub id: VmId,
    /// Its name.
    pub name: Name,
    /// Its state.
    pub state: Phase,
    /// Judgement; absent: it does not run. A running one that does not answer, and one that has failed, is `unhealthy`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verdict: Option<Verdict>,
    /// Round trip to its agent in microseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub round_trip_us: Option<u64>,
    /// Measurements of its agent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health: Option<GuestHealth>,
    /// Why there are none, in words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}
