//! The durable description of one pool.

use serde::{Deserialize, Serialize};

use crate::name::Name;
use crate::template::Template;

/// Longest time a warm VM waits before another takes its place, in seconds (FEATURES row C8).
pub const DEFAULT_AGE_SECONDS: u64 = 3_600;

/// Warm VMs of one template, ready to be handed out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolRecord {
    /// Its name, unique per tenant.
    pub name: Name,
    /// Who owns it.
    pub tenant: String,
    /// The template with all overrides applied: what its VMs are made from.
    pub template: Template,
    /// Warm VMs it is kept filled with.
    pub min: usize,
    /// Most VMs of it at once, handed out ones included.
    pub max: usize,
    /// Seconds after which a waiting VM is replaced.
    pub max_age_seconds: u64,
    /// When it was created, milliseconds since 1970-01-01T00:00:00Z.
    pub created_ms: i64,
}
