//! Progress of long work.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// One report: a step by name, and how much of it is done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProgressReport {
    /// Step under way, in a few words ("building the root file system").
    pub step: String,
    /// Units done so far (bytes, packages …).
    pub done: u64,
    /// Units in all, if known.
    pub total: Option<u64>,
}

/// Receives reports; cheap to clone, never blocks, safe to ignore.
#[derive(Clone)]
pub struct Progress(Arc<dyn Fn(ProgressReport) + Send + Sync>);

impl Progress {
    /// Reports go to `sink`.
    #[must_use]
    pub fn to(sink: impl Fn(ProgressReport) + Send + Sync + 'static) -> Self {
        Self(Arc::new(sink))
    }

    /// Reports go nowhere.
    #[must_use]
    pub fn ignored() -> Self {
        Self::to(|_| {})
    }

    /// A new step begins, of unknown length.
    pub fn step(&self, step: impl Into<String>) {
        (self.0)(ProgressReport { step: step.into(), done: 0, total: None });
    }

    /// So much of a step is done.
    pub fn advance(&self, step: impl Into<String>, done: u64, total: Option<u64>) {
        (self.0)(ProgressReport { step: step.into(), done, total });
    }
}

impl std::fmt::Debug for Progress {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Progress")
    }
}
