//! A guest as its agent describes it.

use microvm_types::guest::{AgentInfo, GuestHealth, GuestProcess, SystemInfo};
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

/// Health of a guest.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct HealthReply {
    /// Always true; a failure is a problem body.
    pub success: bool,
    /// Measurements of the agent.
    pub health: GuestHealth,
    /// When (RFC 3339 with offset).
    pub timestamp: String,
}
