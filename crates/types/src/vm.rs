//! The durable description of one VM.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::id::{SnapshotId, VmId};
use crate::last_stop::LastStop;
use crate::life::Life;
pub use crate::life::Rest;
use crate::lifecycle::Phase;
use crate::name::Name;
use crate::template::Template;

/// Owner of everything made by the local user, until users and roles exist.
pub const LOCAL_TENANT: &str = "local";

/// What becomes of a VM over time, besides what people ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Limits {
    /// Delete it (if `ephemeral`) or stop it after so many seconds without a request that touches its guest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle_seconds: Option<u64>,
    /// Delete it (if `ephemeral`) or stop it so many seconds after it was created.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lifetime_seconds: Option<u64>,
    /// Let it stand still after so many seconds without a request that touches its guest; the next one wakes it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pause_seconds: Option<u64>,
    /// Put it to disk after so many seconds without such a request, which frees its memory; the next one wakes it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hibernate_seconds: Option<u64>,
    /// It is deleted, not stopped, when a limit passes, when its guest powers off or when it fails.
    #[serde(default)]
    pub ephemeral: bool,
}

/// How a VM came to its first instruction.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum Origin {
    /// It booted.
    #[default]
    Boot,
    /// It was forked from the golden snapshot of its template.
    Golden {
        /// That snapshot.
        snapshot: SnapshotId,
    },
    /// It was restored from a snapshot.
    Snapshot {
        /// That snapshot.
        snapshot: SnapshotId,
    },
    /// It was forked from a running VM.
    Fork {
        /// That VM.
        vm: VmId,
    },
}

/// What a VM is to a pool.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct PoolMember {
    /// The pool's name.
    pub pool: Name,
    /// It waits to be handed out; otherwise it was.
    pub waiting: bool,
}

/// Wishes of its owner for a new VM, however it is made.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NewVm {
    /// Labels, on top of those of its template, parent or snapshot.
    pub labels: BTreeMap<String, String>,
    /// Free text, never interpreted.
    pub metadata: BTreeMap<String, String>,
    /// Ends and rests that come by themselves.
    pub limits: Limits,
}

/// Counters of a running VM, from its machine's start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Counters {
    /// Processor time of the VMM process in milliseconds, guest included.
    pub cpu_ms: u64,
    /// Proportional set size of the VMM process in bytes.
    pub memory_pss: u64,
    /// Resident set size of the VMM process in bytes.
    pub memory_rss: u64,
    /// Bytes read from disks.
    pub disk_read_bytes: u64,
    /// Bytes written to disks.
    pub disk_written_bytes: u64,
    /// Read requests.
    pub disk_reads: u64,
    /// Write requests.
    pub disk_writes: u64,
}

/// A shutdown that somebody asked for, and that is not due yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlannedShutdown {
    /// When it was asked for, in milliseconds since 1970-01-01T00:00:00Z.
    pub since_ms: i64,
    /// Seconds from then on until it is due.
    pub delay_seconds: u64,
    /// It ends the machine at once instead of asking the guest.
    pub force: bool,
}

impl PlannedShutdown {
    /// When it is due, in milliseconds since 1970-01-01T00:00:00Z.
    #[must_use]
    pub fn at_ms(&self) -> i64 {
        let delay_ms = i64::try_from(self.delay_seconds).unwrap_or(i64::MAX).saturating_mul(1_000);
        self.since_ms.saturating_add(delay_ms)
    }
}

/// Everything that must survive a crash of the server about one VM. Written whole on every change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmRecord {
    /// Its id.
    pub id: VmId,
    /// Its name, unique per tenant.
    pub name: Name,
    /// Who owns it.
    pub tenant: String,
    /// Name of the caller who made it, or was handed it out by a pool; empty in records of servers that did not note it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub created_by: String,
    /// Where it is in its life, and what goes with that: the fields `phase` and `rest`.
    #[serde(flatten)]
    pub life: Life,
    /// Why it failed, while it is `failed`.
    pub failure: Option<String>,
    /// The template with all overrides applied: what it was made from.
    pub template: Template,
    /// Digest of the image it was made from; its disk depends on exactly this one.
    pub image_digest: String,
    /// Labels, for filters.
    pub labels: BTreeMap<String, String>,
    /// Free text of the owner's, never interpreted.
    pub metadata: BTreeMap<String, String>,
    /// What becomes of it over time.
    pub limits: Limits,
    /// What the driver needs to find its machine again after a restart of the server; `None` without a machine.
    pub machine: Option<serde_json::Value>,
    /// How it came to its first instruction.
    #[serde(default)]
    pub origin: Origin,
    /// What it is to a pool, if it was made for one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool: Option<PoolMember>,
    /// How many times its channel was opened; the next handshake uses this number plus one.
    pub epoch: u64,
    /// Number of changes after which an older copy of this record would do harm: a machine began or ended, memory went to
    /// disk or came back, the VM was acquired or renamed. The VM's directory holds the record as of the newest of them. 0 in
    /// records of servers that did not count.
    #[serde(default)]
    pub generation: u64,
    /// Time from its launch until its agent answered, the last time it started, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot_ms: Option<u64>,
    /// Memory that its guest was asked to make do with, in MiB; `None`: all of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_now_mib: Option<u32>,
    /// Creation, milliseconds since 1970-01-01T00:00:00Z.
    pub created_ms: i64,
    /// Last change of this record, same unit.
    pub updated_ms: i64,
    /// Last time it started to run, same unit.
    pub started_ms: Option<i64>,
    /// Its last stop, hibernation or failure; absent: there was none, or an older server did not note it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_stop: Option<LastStop>,
    /// Shutdown that is to come, while it runs or is paused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub planned_shutdown: Option<PlannedShutdown>,
}

impl VmRecord {
    /// Where it is in its life.
    #[must_use]
    pub const fn phase(&self) -> Phase {
        self.life.phase()
    }

    /// True while it waits in its pool: made for it, and not acquired yet.
    #[must_use]
    pub fn is_pools(&self) -> bool {
        self.pool.as_ref().is_some_and(|member| member.waiting)
    }
}
