//! The life of one VM: its phase, and what goes with it. Only [`Life::apply`] changes a phase, along the table.

use serde::{Deserialize, Serialize};

use crate::id::SnapshotId;
use crate::lifecycle::{Asked, Denied, LifecycleEvent, Phase, next};

/// How a VM rests until the next request wakes it, or until there is room.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum Rest {
    /// It stands still, because nobody used it.
    Paused,
    /// It stands still, because the host's disk is full or nearly so; it goes on by itself when there is room.
    DiskFull,
    /// It has no machine; its memory is on disk.
    Asleep {
        /// The snapshot it goes on from.
        snapshot: SnapshotId,
    },
}

/// The phase of a VM with what belongs to it: why it is paused, and where its memory is while it hibernates.
///
/// Serialised as the fields `phase` and `rest` of the record that it is flattened into.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Life {
    phase: Phase,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    rest: Option<Rest>,
}

impl Default for Life {
    fn default() -> Self {
        Self::new()
    }
}

impl Life {
    /// A life that begins: [`Phase::Creating`].
    #[must_use]
    pub const fn new() -> Self {
        Self { phase: Phase::Creating, rest: None }
    }

    /// A life as an earlier server stored it, or as a test wants it; `pooled` if the VM waits in a pool. Older versions
    /// stored a hibernated VM as stopped, and a pooled one as paused.
    #[must_use]
    pub fn stored(phase: Phase, rest: Option<Rest>, pooled: bool) -> Self {
        let phase = match (phase, &rest) {
            (Phase::Stopped, Some(Rest::Asleep { .. })) => Phase::Hibernated,
            (Phase::Paused, _) if pooled => Phase::Pooled,
            (phase, _) => phase,
        };
        let mut life = Self { phase, rest };
        life.forget_what_is_over();
        life
    }

    /// Where the VM is in its life.
    #[must_use]
    pub const fn phase(&self) -> Phase {
        self.phase
    }

    /// Why it is paused if nobody asked for it, or where its memory is.
    #[must_use]
    pub const fn rest(&self) -> Option<&Rest> {
        self.rest.as_ref()
    }

    /// The snapshot that holds its memory, while it hibernates and until it runs again.
    #[must_use]
    pub const fn asleep(&self) -> Option<&SnapshotId> {
        match &self.rest {
            Some(Rest::Asleep { snapshot }) => Some(snapshot),
            _ => None,
        }
    }

    /// Changes the phase along the table.
    ///
    /// # Errors
    /// [`Denied`] if the table has no such arrow, or if it is to hibernate without memory on disk; nothing has changed then.
    pub fn apply(&mut self, event: LifecycleEvent) -> Result<(), Denied> {
        let phase = next(self.phase, event)?;
        if phase == Phase::Hibernated && self.asleep().is_none() {
            return Err(Denied { phase: self.phase, asked: Asked::Event(event) });
        }
        self.phase = phase;
        self.forget_what_is_over();
        Ok(())
    }

    /// Pauses it for a reason of the server's: the next request, or room on the disk, lets it go on.
    ///
    /// # Errors
    /// As [`Life::apply`].
    pub fn pause_because(&mut self, reason: Rest) -> Result<(), Denied> {
        self.apply(LifecycleEvent::Pause)?;
        self.rest = Some(reason);
        self.forget_what_is_over();
        Ok(())
    }

    /// Stops it with its memory in `snapshot`.
    ///
    /// # Errors
    /// As [`Life::apply`].
    pub fn fall_asleep(&mut self, snapshot: SnapshotId) -> Result<(), Denied> {
        self.apply(LifecycleEvent::Stop)?;
        self.rest = Some(Rest::Asleep { snapshot });
        Ok(())
    }

    /// Its owner wants it to stay paused, whatever paused it.
    pub fn stay_paused(&mut self) {
        if self.phase == Phase::Paused {
            self.rest = None;
        }
    }

    /// Gives up the memory that it sleeps on, and says where that is. A VM that is only hibernated is stopped then.
    pub fn give_up_sleep(&mut self) -> Option<SnapshotId> {
        let snapshot = self.asleep().cloned()?;
        // Only a VM that is hibernated is in another phase then: the table has no arrow for any other.
        if self.apply(LifecycleEvent::Forgotten).is_err() {
            self.rest = None;
        }
        Some(snapshot)
    }

    /// How it ends without its machine: with its memory on disk, or without.
    #[must_use]
    pub const fn ended(&self) -> LifecycleEvent {
        if self.asleep().is_some() { LifecycleEvent::Hibernated } else { LifecycleEvent::Stopped }
    }

    fn forget_what_is_over(&mut self) {
        let still = match &self.rest {
            Some(Rest::Paused | Rest::DiskFull) => self.phase == Phase::Paused,
            Some(Rest::Asleep { .. }) => !matches!(
                self.phase,
                Phase::Creating
                    | Phase::Stopped
                    | Phase::Running
                    | Phase::Paused
                    | Phase::Pooled
                    | Phase::Deleted
            ),
            None => true,
        };
        if !still {
            self.rest = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn snapshot() -> SnapshotId {
        "abcdefghij0123456789".parse().expect("a valid id")
    }

    proptest! {
        /// Whatever happens in whatever order: a reason to be paused only while paused, memory on disk only without a
        /// machine that runs.
        #[test]
        fn what_goes_with_a_phase_ends_with_it(steps in prop::collection::vec(0usize..LifecycleEvent::ALL.len() + 5, 0..200)) {
            let mut life = Life::new();
            for step in steps {
                let before = life.clone();
                let outcome = match step.checked_sub(LifecycleEvent::ALL.len()) {
                    None => life.apply(LifecycleEvent::ALL[step]),
                    Some(0) => life.pause_because(Rest::Paused),
                    Some(1) => life.pause_because(Rest::DiskFull),
                    Some(2) => life.fall_asleep(snapshot()),
                    Some(3) => { life.stay_paused(); Ok(()) }
                    Some(_) => { let _ = life.give_up_sleep(); Ok(()) }
                };
                if outcome.is_err() {
                    prop_assert_eq!(&before, &life, "a refusal changes nothing");
                }
                match life.rest() {
                    Some(Rest::Paused | Rest::DiskFull) => prop_assert_eq!(life.phase(), Phase::Paused),
                    Some(Rest::Asleep { .. }) => {
                        prop_assert!(!matches!(life.phase(), Phase::Running | Phase::Paused | Phase::Pooled));
                    }
                    None => prop_assert_ne!(life.phase(), Phase::Hibernated, "without its memory it is stopped"),
                }
            }
        }
    }

    #[test]
    fn records_of_older_versions_are_understood() {
        let asleep = Some(Rest::Asleep { snapshot: snapshot() });
        assert_eq!(Life::stored(Phase::Stopped, asleep, false).phase(), Phase::Hibernated);
        assert_eq!(Life::stored(Phase::Paused, None, true).phase(), Phase::Pooled);
        // A VM that died while it dozed was stored with its reason to doze.
        assert_eq!(Life::stored(Phase::Failed, Some(Rest::Paused), false).rest(), None);
        let kept: Life =
            serde_json::from_str(r#"{"phase":"paused","rest":{"kind":"disk_full"}}"#).expect("reads");
        assert_eq!(kept.rest(), Some(&Rest::DiskFull));
    }
}
