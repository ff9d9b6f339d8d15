//! The guest as its agent describes it.

use serde::{Deserialize, Serialize};

use crate::PathStyle;

/// The agent and its guest, as told in the handshake. Untrusted: lengths are limited, texts are shown, never acted on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct AgentInfo {
    /// Version of the agent.
    pub agent_version: String,
    /// Release of the guest's kernel.
    pub kernel_release: String,
    /// Milliseconds from the kernel's start to the agent being ready to serve, by the guest's clock.
    pub boot_ms: u64,
    /// Syntax of the guest's paths.
    #[serde(default)]
    pub path_style: PathStyle,
    /// Firmware that the guest was started by; absent: an older agent does not tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub firmware: Option<Firmware>,
}

/// Firmware of a machine, as its guest sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum Firmware {
    /// None that the system uses: the kernel was loaded by the VMM, or by a BIOS.
    None,
    /// UEFI.
    Uefi,
}

/// The guest as a system.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct SystemInfo {
    /// Name of the operating system, from `/etc/os-release`.
    pub operating_system: String,
    /// Kernel release.
    pub kernel_release: String,
    /// Host name.
    pub host_name: String,
    /// Machine architecture, for example `x86_64`.
    pub architecture: String,
    /// Processors that are on line.
    pub vcpus: u32,
    /// Memory in bytes.
    pub memory_total: u64,
    /// Memory in bytes that programs could still get.
    pub memory_available: u64,
    /// Size of the root file system in bytes.
    pub disk_total: u64,
    /// Free bytes on the root file system.
    pub disk_available: u64,
    /// Seconds since the kernel started.
    pub uptime_seconds: u64,
    /// Load averages over 1, 5 and 15 minutes.
    pub load_average: [f64; 3],
    /// Wall clock of the guest in milliseconds since 1970-01-01T00:00:00Z.
    pub wall_clock_ms: i64,
}

/// One process of the guest, whoever started it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct GuestProcess {
    /// Process number.
    pub pid: u32,
    /// Process number of its parent.
    pub parent: u32,
    /// User id.
    pub uid: u32,
    /// State letter as in `/proc/<pid>/stat`.
    pub state: char,
    /// Resident memory in bytes.
    pub resident_bytes: u64,
    /// Processor time used, in milliseconds.
    pub cpu_ms: u64,
    /// Command line, or the kernel's name for it in brackets; of a long one the first part. Bytes that are no UTF-8 are
    /// written as `\xNN`.
    pub command: String,
    /// Bytes of the command line that are left out; absent: none.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub command_omitted: u64,
}

const fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// How the guest is doing.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct GuestHealth {
    /// Processor use since the last such question (or since boot), 0 to 100.
    pub cpu_percent: f64,
    /// Memory in use, 0 to 100.
    pub memory_percent: f64,
    /// Root file system in use, 0 to 100.
    pub disk_percent: f64,
    /// Whether the template's start commands have all been started successfully.
    pub start_commands_done: bool,
    /// The start command that could not be started, if there is one; the later ones did not run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_command_not_started: Option<NotStarted>,
}

/// A start command that could not be started, so that there is no process of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct NotStarted {
    /// Its place among the start commands, from 0.
    pub place: u32,
    /// The command, its end left out where it is long.
    pub command: String,
    /// Bytes of the command that are left out.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub command_omitted: u64,
    /// Reason that the guest gives.
    pub reason: String,
}

/// Judgement of a part of the system, or of a guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum Verdict {
    /// Nothing is wrong.
    Healthy,
    /// It works, and something needs care.
    Degraded,
    /// It does not work, or will not in a moment.
    Unhealthy,
}

impl Verdict {
    /// The word used in the API and on the command line.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Healthy => "healthy",
            Self::Degraded => "degraded",
            Self::Unhealthy => "unhealthy",
        }
    }
}

/// Use of processors, memory or disk in percent from which on a guest is degraded.
pub const DEGRADED_PERCENT: f64 = 85.0;
/// Use of memory or disk in percent from which on a guest is unhealthy: its next process, or its next write, may fail.
pub const UNHEALTHY_PERCENT: f64 = 95.0;

impl GuestHealth {
    /// Judgement by the thresholds: unhealthy if memory or disk are used to [`UNHEALTHY_PERCENT`] or more; degraded if
    /// processors, memory or disk are to [`DEGRADED_PERCENT`] or more, or start commands are not done.
    #[must_use]
    pub fn verdict(&self) -> Verdict {
        let fullest = self.memory_percent.max(self.disk_percent);
        if fullest >= UNHEALTHY_PERCENT {
            Verdict::Unhealthy
        } else if fullest.max(self.cpu_percent) >= DEGRADED_PERCENT || !self.start_commands_done {
            Verdict::Degraded
        } else {
            Verdict::Healthy
        }
    }
}

#[cfg(test)]
mod verdicts {
    use super::{GuestHealth, Verdict};

    #[test]
    fn a_guest_is_judged_by_its_fullest_resource() {
        let judged = |cpu_percent, memory_percent, disk_percent, start_commands_done| {
            GuestHealth {
                cpu_percent,
                memory_percent,
                disk_percent,
                start_commands_done,
                start_command_not_started: None,
            }
            .verdict()
        };
        assert_eq!(judged(84.9, 84.9, 84.9, true), Verdict::Healthy);
        for degraded in
            [judged(100.0, 1.0, 1.0, true), judged(0.0, 85.0, 0.0, true), judged(0.0, 0.0, 94.9, true)]
        {
            assert_eq!(degraded, Verdict::Degraded);
        }
        assert_eq!(judged(0.0, 0.0, 0.0, false), Verdict::Degraded);
        assert_eq!(
            (judged(0.0, 95.0, 0.0, true), judged(0.0, 0.0, 99.0, true)),
            (Verdict::Unhealthy, Verdict::Unhealthy)
        );
    }
}

/// How a guest is asked to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum ShutdownMode {
    /// End all processes, sync and power off.
    PowerOff,
    /// End all processes, sync and boot again.
    Reboot,
}
