//! Pools.

use std::collections::BTreeMap;

use microvm_types::pool::{DEFAULT_MAX, DEFAULT_MIN};
use microvm_types::template::Overrides;
use microvm_types::vm::Limits;
use microvm_types::{Name, Unreadable};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::milliseconds::Milliseconds;
use crate::vm::Vm;

/// One pool.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Pool {
    /// Its name.
    pub name: Name,
    /// Name of its template.
    pub template: String,
    /// Warm VMs it is kept filled with.
    pub min: usize,
    /// Most VMs of it at once.
    pub max: usize,
    /// Seconds after which a waiting VM is replaced.
    pub max_age_seconds: u64,
    /// VMs that wait.
    pub waiting: usize,
    /// VMs being made.
    pub filling: usize,
    /// VMs handed out that still exist.
    pub handed_out: usize,
    /// Why the last VM could not be made; absent after a success.
    pub failure: Option<String>,
    /// When it was created (RFC 3339 with offset).
    pub created_at: String,
}

/// All pools by name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PoolList {
    /// The pools.
    pub pools: Vec<Pool>,
    /// Those that cannot be read; the list is not whole then.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unreadable: Vec<Unreadable>,
}

/// A pool to be made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreatePool {
    /// Its name.
    pub name: Name,
    /// Name of the template; the server's default if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub template: Option<String>,
    /// Changes to the template.
    #[serde(default)]
    pub overrides: Overrides,
    /// Labels of its VMs, on top of the template's.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Free text that each of its VMs gets when it is acquired, below what is asked for then.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub metadata: BTreeMap<String, String>,
    /// Warm VMs it is kept filled with; 5 if absent.
    #[serde(default = "default_min")]
    pub min: usize,
    /// Most VMs of it at once, those handed out included; 20 if absent.
    #[serde(default = "default_max")]
    pub max: usize,
    /// Seconds after which a waiting VM is replaced; an hour if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_age_seconds: Option<u64>,
}

const fn default_min() -> usize {
    DEFAULT_MIN
}

const fn default_max() -> usize {
    DEFAULT_MAX
}

/// Changes of a pool; absent fields stay.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ResizePool {
    /// Warm VMs it is kept filled with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min: Option<usize>,
    /// Most VMs of it at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max: Option<usize>,
    /// Seconds after which a waiting VM is replaced.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_age_seconds: Option<u64>,
}

/// A wish for a VM of a pool.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Acquire {
    /// Its name; made up if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<Name>,
    /// Labels on top of the template's.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Free text, never interpreted.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub metadata: BTreeMap<String, String>,
    /// Limits of its life and its idle time.
    #[serde(default)]
    pub limits: Limits,
}

/// A VM to be given back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Release {
    /// Its name or id.
    pub vm: String,
}

/// A VM that was given back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Released {
    /// True if a new VM takes its place; false if enough of them wait.
    pub replaced: bool,
}

/// A VM that was handed out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Acquired {
    /// The VM; it runs.
    pub vm: Vm,
    /// Where it came from: `pool`, `fork` or `boot`.
    pub tier: String,
    /// Duration in milliseconds.
    pub duration_ms: Milliseconds,
}
