//! What is stored and cannot be read: kept beside what can, for lists to tell.

use std::sync::{Mutex, PoisonError};

use microvm_types::Unreadable;

/// Some of them.
#[derive(Default)]
pub(crate) struct Part(Mutex<Vec<Unreadable>>);

impl Part {
    /// Keeps one, and tells it in the log.
    pub(crate) fn add(&self, kind: &str, name: impl Into<String>, reason: impl std::fmt::Display) {
        let one = Unreadable::new(name, reason);
        tracing::error!(kind, name = one.name, reason = one.reason, "it cannot be read, and is left alone");
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(one);
    }

    pub(crate) fn all(&self) -> Vec<Unreadable> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// All of them by kind.
#[derive(Default)]
pub(crate) struct UnreadableParts {
    pub(crate) vms: Part,
    pub(crate) snapshots: Part,
    pub(crate) pools: Part,
}
