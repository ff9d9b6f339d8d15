//! Stored things that cannot be read: kept beside those that can, for lists to tell.

use std::sync::{Mutex, PoisonError};

use microvm_types::Unreadable;
use microvm_types::vm::LOCAL_TENANT;

/// Those of one kind, each with its tenant if that can be told.
#[derive(Default)]
pub(crate) struct Part(Mutex<Vec<(Option<String>, Unreadable)>>);

impl Part {
    /// Keeps one, and tells it in the log.
    pub(crate) fn add(
        &self,
        kind: &str,
        tenant: Option<&str>,
        name: impl Into<String>,
        reason: impl std::fmt::Display,
    ) {
        let one = Unreadable::new(name, reason);
        tracing::error!(kind, name = one.name, reason = one.reason, "it cannot be read, and is left alone");
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push((tenant.map(str::to_owned), one));
    }

    /// Forgets one that is gone.
    pub(crate) fn remove(&self, name: &str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).retain(|(_, one)| one.name != name);
    }

    /// Those of one tenant. What belongs to nobody who can be told is for whoever owns the host to mend: it is told to the
    /// local tenant.
    pub(crate) fn of(&self, tenant: &str) -> Vec<Unreadable> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let owned = all.iter().filter(|(owner, _)| owner.as_deref().unwrap_or(LOCAL_TENANT) == tenant);
        owned.map(|(_, one)| one.clone()).collect()
    }

    /// Those of all tenants: for the host.
    pub(crate) fn all(&self) -> Vec<Unreadable> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.iter().map(|(_, one)| one.clone()).collect()
    }
}

/// All of them by kind.
#[derive(Default)]
pub(crate) struct UnreadableParts {
    pub(crate) vms: Part,
    pub(crate) snapshots: Part,
    pub(crate) pools: Part,
    pub(crate) volumes: Part,
}
