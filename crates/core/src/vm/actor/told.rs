//! What is told with a change of a VM: in words, and of an end its reason.

use microvm_types::{LastStop, StopReason};

/// What is told with a change.
#[derive(Debug, Clone, Default)]
pub(super) struct Told {
    /// Words, where there is more to say than the change.
    pub(super) words: Option<String>,
    /// Reason of an end.
    pub(super) stop: Option<StopReason>,
    /// When it was asked for, in milliseconds since 1970-01-01T00:00:00Z; `None`: it happens now.
    at_ms: Option<i64>,
}

impl Told {
    /// The change says it all.
    pub(super) const NOTHING: Self = Self { words: None, stop: None, at_ms: None };

    /// Words alone.
    pub(super) fn words(words: impl Into<String>) -> Self {
        Self { words: Some(words.into()), ..Self::NOTHING }
    }

    /// An end.
    pub(super) const fn stop(reason: StopReason) -> Self {
        Self { words: None, stop: Some(reason), at_ms: None }
    }

    /// An end, with what was observed.
    pub(super) fn stop_with(reason: StopReason, words: impl Into<String>) -> Self {
        Self { words: Some(words.into()), stop: Some(reason), at_ms: None }
    }

    /// An end that was noted when it was asked for.
    pub(super) fn noted(stop: LastStop) -> Self {
        Self { words: stop.detail, stop: Some(stop.reason), at_ms: Some(stop.at_ms) }
    }

    /// The end as it is kept with the VM.
    pub(super) fn last_stop(&self, now_ms: i64) -> Option<LastStop> {
        let at_ms = self.at_ms.unwrap_or(now_ms);
        self.stop.map(|reason| LastStop { reason, at_ms, detail: self.words.clone() })
    }
}
