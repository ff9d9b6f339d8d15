//! The durable description of one pool.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::name::Name;
use crate::template::Template;

/// Longest time a warm VM waits before another takes its place, in seconds (FEATURES row C8).
pub const DEFAULT_AGE_SECONDS: u64 = 3_600;

/// Warm VMs that a pool is kept filled with unless said otherwise (FEATURES row C8).
pub const DEFAULT_MIN: usize = 5;
/// Most VMs of a pool at once unless said otherwise (FEATURES row C8).
pub const DEFAULT_MAX: usize = 20;

/// Warm VMs of one template, ready to be handed out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolRecord {
    /// Its name, unique per tenant.
    pub name: Name,
    /// Who owns it.
    pub tenant: String,
    /// The template with all overrides applied: what its VMs are made from.
    pub template: Template,
    /// Free text that each VM gets when it is acquired, below what is asked for then.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub metadata: BTreeMap<String, String>,
    /// Warm VMs it is kept filled with.
    pub min: usize,
    /// Most VMs of it at once, handed out ones included.
    pub max: usize,
    /// Seconds after which a waiting VM is replaced.
    pub max_age_seconds: u64,
    /// When it was created, milliseconds since 1970-01-01T00:00:00Z.
    pub created_ms: i64,
}
