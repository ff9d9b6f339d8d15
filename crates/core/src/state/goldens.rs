//! Golden snapshots by what they depend on.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use microvm_ports::snapshot::BranchSource;
use microvm_types::SnapshotId;
use microvm_types::vm::Origin;
use tokio::sync::OnceCell;

/// Label of machines that are booted to make a golden snapshot.
pub(crate) const GOLDEN_LABEL: &str = "microvm.golden";

/// Golden snapshots by key; each is made once, by whoever comes first, while others wait.
#[derive(Debug, Default)]
pub(crate) struct GoldenTable {
    current: Mutex<HashMap<String, Arc<OnceCell<SnapshotId>>>>,
    /// Versions that somebody went back to; without a choice it is the newest.
    choices: Mutex<HashMap<String, SnapshotId>>,
    /// When each was last used, in milliseconds of the wall clock; noted once a day.
    uses: Mutex<HashMap<SnapshotId, i64>>,
}

impl GoldenTable {
    pub(crate) fn cell(&self, key: &str) -> Arc<OnceCell<SnapshotId>> {
        let mut cells = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(cells.entry(key.to_owned()).or_default())
    }

    /// The next VM looks anew.
    pub(crate) fn forget(&self, key: &str) {
        self.current.lock().unwrap_or_else(PoisonError::into_inner).remove(key);
    }

    pub(crate) fn last_use(&self, id: &SnapshotId) -> Option<i64> {
        self.uses.lock().unwrap_or_else(PoisonError::into_inner).get(id).copied()
    }

    pub(crate) fn note_use(&self, id: &SnapshotId, now_ms: i64) {
        self.uses.lock().unwrap_or_else(PoisonError::into_inner).insert(id.clone(), now_ms);
    }

    pub(crate) fn choice(&self, key: &str) -> Option<SnapshotId> {
        self.choices.lock().unwrap_or_else(PoisonError::into_inner).get(key).cloned()
    }

    pub(crate) fn choose(&self, key: &str, id: Option<SnapshotId>) {
        let mut choices = self.choices.lock().unwrap_or_else(PoisonError::into_inner);
        match id {
            Some(id) => choices.insert(key.to_owned(), id),
            None => choices.remove(key),
        };
    }
}

/// A state to begin from, and what to note of it.
pub(crate) struct StartingPoint {
    pub(crate) source: BranchSource,
    pub(crate) origin: Origin,
    pub(crate) epoch: u64,
}
