//! Programs and webhooks of the user's around the events of a VM.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What to run on the host around a lifecycle event.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Hook {
    /// When it runs.
    pub at: HookPoint,
    /// What is done: exactly one of `program` and `webhook`.
    #[serde(flatten)]
    pub action: HookAction,
    /// Milliseconds it may take, 1 to 600,000.
    #[serde(default = "default_hook_timeout_ms")]
    pub timeout_ms: u64,
    /// What happens to the operation when a `before_*` hook fails.
    #[serde(default)]
    pub on_failure: HookFailure,
}

const fn default_hook_timeout_ms() -> u64 {
    10_000
}

/// When a hook runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum HookPoint {
    /// Before a VM is created.
    BeforeCreate,
    /// After it was created.
    AfterCreate,
    /// Before its machine starts.
    BeforeStart,
    /// After its agent answered.
    AfterStart,
    /// Before it is shut down.
    BeforeStop,
    /// After its machine ended.
    AfterStop,
    /// Before it is removed.
    BeforeDelete,
    /// After it was removed.
    AfterDelete,
    /// Before it is paused, as somebody asked.
    BeforePause,
    /// After it was paused.
    AfterPause,
    /// Before it is resumed, as somebody asked.
    BeforeResume,
    /// After it was resumed.
    AfterResume,
    /// Before a snapshot of it is taken for somebody.
    BeforeSnapshot,
    /// After that snapshot was written.
    AfterSnapshot,
    /// Before it goes back to a snapshot, or is made of one.
    BeforeRestore,
    /// After it runs from that snapshot.
    AfterRestore,
    /// Before children are forked from it.
    BeforeFork,
    /// After their state was taken.
    AfterFork,
    /// After it has failed: its machine was lost, or did not come up.
    OnFailure,
}

impl HookPoint {
    /// All points, for tables and tests.
    pub const ALL: [Self; 19] = [
        Self::BeforeCreate,
        Self::AfterCreate,
        Self::BeforeStart,
        Self::AfterStart,
        Self::BeforeStop,
        Self::AfterStop,
        Self::BeforeDelete,
        Self::AfterDelete,
        Self::BeforePause,
        Self::AfterPause,
        Self::BeforeResume,
        Self::AfterResume,
        Self::BeforeSnapshot,
        Self::AfterSnapshot,
        Self::BeforeRestore,
        Self::AfterRestore,
        Self::BeforeFork,
        Self::AfterFork,
        Self::OnFailure,
    ];

    /// The word used in templates and messages.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::BeforeCreate => "before_create",
            Self::AfterCreate => "after_create",
            Self::BeforeStart => "before_start",
            Self::AfterStart => "after_start",
            Self::BeforeStop => "before_stop",
            Self::AfterStop => "after_stop",
            Self::BeforeDelete => "before_delete",
            Self::AfterDelete => "after_delete",
            Self::BeforePause => "before_pause",
            Self::AfterPause => "after_pause",
            Self::BeforeResume => "before_resume",
            Self::AfterResume => "after_resume",
            Self::BeforeSnapshot => "before_snapshot",
            Self::AfterSnapshot => "after_snapshot",
            Self::BeforeRestore => "before_restore",
            Self::AfterRestore => "after_restore",
            Self::BeforeFork => "before_fork",
            Self::AfterFork => "after_fork",
            Self::OnFailure => "on_failure",
        }
    }

    /// True if a hook there may refuse what it comes before.
    #[must_use]
    pub const fn may_refuse(self) -> bool {
        matches!(
            self,
            Self::BeforeCreate
                | Self::BeforeStart
                | Self::BeforeStop
                | Self::BeforeDelete
                | Self::BeforePause
                | Self::BeforeResume
                | Self::BeforeSnapshot
                | Self::BeforeRestore
                | Self::BeforeFork
        )
    }
}

impl fmt::Display for HookPoint {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.as_str())
    }
}

/// What a hook does. The event is handed over as JSON: on standard input, or as the body of a POST.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum HookAction {
    /// Program and arguments, run on the host as the server's user.
    Program(Vec<String>),
    /// An `http://` address that gets a POST.
    Webhook(String),
}

/// Whether a failed `before_*` hook stops the operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum HookFailure {
    /// The operation is refused.
    #[default]
    Abort,
    /// It is logged and the operation goes on.
    Ignore,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hook_reads_naturally() {
        let hook: Hook =
            serde_json::from_str(r#"{"at":"before_start","program":["/bin/true"],"timeout_ms":50}"#).unwrap();
        assert_eq!(hook.action, HookAction::Program(vec!["/bin/true".into()]));
        assert_eq!(hook.on_failure, HookFailure::Abort);
    }
}
