//! Changes of a VM's name, labels, metadata and limits.

use std::collections::BTreeMap;

use microvm_types::Name;
use microvm_types::vm::{Limits, VmRecord};

use crate::error::ServiceError;

/// Changes of a VM's name, labels, metadata and limits. The default changes nothing.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct VmChange {
    /// Its new name.
    pub name: Option<Name>,
    /// Labels that are set; `None` removes one.
    pub labels: BTreeMap<String, Option<String>>,
    /// Metadata that are set; `None` removes one.
    pub metadata: BTreeMap<String, Option<String>>,
    /// Limits that are set.
    pub limits: LimitsChange,
}

/// Limits of a VM that are set; 0 removes one, `None` keeps it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LimitsChange {
    /// Seconds without use until it is ended.
    pub idle_seconds: Option<u64>,
    /// Seconds from its creation until it is ended.
    pub lifetime_seconds: Option<u64>,
    /// Seconds from now until it is ended, at least 1; instead of `lifetime_seconds`.
    pub lifetime_left_seconds: Option<u64>,
    /// Seconds without use until it is paused.
    pub pause_seconds: Option<u64>,
    /// Seconds without use until it is hibernated.
    pub hibernate_seconds: Option<u64>,
    /// True if it is deleted, instead of stopped, when it is ended.
    pub ephemeral: Option<bool>,
}

impl VmChange {
    /// Changes a record. `now_ms`: milliseconds since 1970-01-01T00:00:00Z.
    ///
    /// # Errors
    /// [`ServiceError::Invalid`] if the lifetime is given twice, or ends now.
    pub(crate) fn apply(self, record: &mut VmRecord, now_ms: i64) -> Result<(), ServiceError> {
        // First: the only part that can be refused, and nothing is changed then.
        record.limits = self.limits.applied_to(record.limits, now_ms.saturating_sub(record.created_ms))?;
        merge(&mut record.labels, self.labels);
        merge(&mut record.metadata, self.metadata);
        if let Some(name) = self.name {
            record.name = name;
        }
        Ok(())
    }
}

impl LimitsChange {
    /// True if the VM, which is `ephemeral` or not, may be deleted because of this change.
    pub(crate) fn may_delete(&self, ephemeral: bool) -> bool {
        let Self { idle_seconds, lifetime_seconds, lifetime_left_seconds, ephemeral: chosen, .. } = *self;
        let ends = [idle_seconds, lifetime_seconds, lifetime_left_seconds].iter().any(Option::is_some);
        chosen == Some(true) || (chosen.unwrap_or(ephemeral) && ends)
    }

    fn applied_to(self, limits: Limits, age_ms: i64) -> Result<Limits, ServiceError> {
        let Self {
            idle_seconds,
            lifetime_seconds,
            lifetime_left_seconds,
            pause_seconds,
            hibernate_seconds,
            ephemeral,
        } = self;
        let invalid = |reason: &str| ServiceError::Invalid {
            field: "limits.lifetime_left_seconds",
            reason: reason.to_owned(),
        };
        let lifetime_seconds = match (lifetime_seconds, lifetime_left_seconds) {
            (Some(_), Some(_)) => {
                return Err(invalid("the lifetime is counted from the creation or from now, not both"));
            }
            (_, Some(0)) => {
                return Err(invalid("0 s from now is no time: give at least 1, or stop the VM"));
            }
            (None, Some(left)) => {
                // Rounded up: it never ends earlier than asked.
                let age = u64::try_from(age_ms).unwrap_or(0).div_ceil(1000);
                Some(age.saturating_add(left))
            }
            (given, None) => given,
        };
        let chosen = |new: Option<u64>, old: Option<u64>| match new {
            Some(0) => None,
            Some(seconds) => Some(seconds),
            None => old,
        };
        Ok(Limits {
            idle_seconds: chosen(idle_seconds, limits.idle_seconds),
            lifetime_seconds: chosen(lifetime_seconds, limits.lifetime_seconds),
            pause_seconds: chosen(pause_seconds, limits.pause_seconds),
            hibernate_seconds: chosen(hibernate_seconds, limits.hibernate_seconds),
            ephemeral: ephemeral.unwrap_or(limits.ephemeral),
        })
    }
}

fn merge(into: &mut BTreeMap<String, String>, changes: BTreeMap<String, Option<String>>) {
    for (key, value) in changes {
        match value {
            Some(value) => {
                into.insert(key, value);
            }
            None => {
                into.remove(&key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_that_may_delete_are_known() {
        let none = LimitsChange::default();
        let ends = LimitsChange { lifetime_left_seconds: Some(1), ..none };
        assert!(!none.may_delete(true) && !ends.may_delete(false) && ends.may_delete(true));
        assert!(LimitsChange { ephemeral: Some(true), ..none }.may_delete(false));
        assert!(!LimitsChange { ephemeral: Some(false), ..ends }.may_delete(true));
    }

    fn applied(change: LimitsChange, age_ms: i64) -> Result<Limits, ServiceError> {
        let limits = Limits { idle_seconds: Some(60), lifetime_seconds: Some(3600), ..Limits::default() };
        change.applied_to(limits, age_ms)
    }

    #[test]
    fn what_is_not_named_stays_and_zero_removes() {
        let none = LimitsChange::default();
        assert_eq!(applied(none, 0).unwrap().idle_seconds, Some(60));
        let change = LimitsChange { idle_seconds: Some(0), ephemeral: Some(true), ..none };
        let limits = applied(change, 0).unwrap();
        assert_eq!(
            (limits.idle_seconds, limits.lifetime_seconds, limits.ephemeral),
            (None, Some(3600), true)
        );
    }

    #[test]
    fn a_lifetime_is_extended_from_now() {
        let change = LimitsChange { lifetime_left_seconds: Some(100), ..LimitsChange::default() };
        assert_eq!(applied(change, 5_001).unwrap().lifetime_seconds, Some(106));
        // A clock that was set back makes no lifetime longer than asked.
        assert_eq!(applied(change, -5_000).unwrap().lifetime_seconds, Some(100));
        let both = LimitsChange { lifetime_seconds: Some(1), ..change };
        assert_eq!(applied(both, 0).unwrap_err().code(), "invalid_field");
        let now = LimitsChange { lifetime_left_seconds: Some(0), ..LimitsChange::default() };
        assert_eq!(applied(now, 0).unwrap_err().code(), "invalid_field");
    }
}
