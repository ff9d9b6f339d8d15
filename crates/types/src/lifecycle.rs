//! The table of what a VM may do next: pure data, walked by a property test.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Where a VM is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum Phase {
    /// Its files are being made; it was never reported as existing.
    Creating,
    /// It has a disk and no machine.
    Stopped,
    /// Its memory is on disk as well, and it has no machine: the next start or request goes on where it was.
    Hibernated,
    /// Its machine is being launched and its agent awaited.
    Starting,
    /// Its agent answers.
    Running,
    /// Its processors stand still; memory and disk are kept.
    Paused,
    /// Its machine is being shut down.
    Stopping,
    /// Its machine was lost; the reason is kept with the VM. It can be started again or deleted.
    Failed,
    /// It is being removed; the end of every life.
    Deleting,
}

impl Phase {
    /// All phases, for tables and tests.
    pub const ALL: [Self; 9] = [
        Self::Creating,
        Self::Stopped,
        Self::Hibernated,
        Self::Starting,
        Self::Running,
        Self::Paused,
        Self::Stopping,
        Self::Failed,
        Self::Deleting,
    ];

    /// Whether a machine process may exist in this phase.
    #[must_use]
    pub const fn has_machine(self) -> bool {
        matches!(self, Self::Starting | Self::Running | Self::Paused | Self::Stopping | Self::Deleting)
    }

    /// Whether the phase ends by itself, without another request.
    #[must_use]
    pub const fn is_transient(self) -> bool {
        matches!(self, Self::Creating | Self::Starting | Self::Stopping | Self::Deleting)
    }

    /// The word used in the API, the command line and logs.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Creating => "creating",
            Self::Stopped => "stopped",
            Self::Hibernated => "hibernated",
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopping => "stopping",
            Self::Failed => "failed",
            Self::Deleting => "deleting",
        }
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.as_str())
    }
}

/// What happens to a VM: a request admitted, or something that came about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LifecycleEvent {
    /// Its files are complete.
    Created,
    /// Somebody asks for it to run.
    Start,
    /// Its agent answered and confirmed its identity.
    Started,
    /// Somebody asks it to stand still.
    Pause,
    /// Somebody asks it to go on.
    Resume,
    /// Somebody asks it to shut down.
    Stop,
    /// Its machine ended as asked, or the guest shut itself down.
    Stopped,
    /// Its machine ended, and its memory is on disk.
    Hibernated,
    /// Its machine was lost, or a step towards running failed.
    Lost,
    /// Somebody asks for it to be removed.
    Delete,
}

impl LifecycleEvent {
    /// All events, for tables and tests.
    pub const ALL: [Self; 10] = [
        Self::Created,
        Self::Start,
        Self::Started,
        Self::Pause,
        Self::Resume,
        Self::Stop,
        Self::Stopped,
        Self::Hibernated,
        Self::Lost,
        Self::Delete,
    ];

    const fn verb(self) -> &'static str {
        match self {
            Self::Created => "finish creating",
            Self::Start => "start",
            Self::Started => "report as started",
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::Stop => "stop",
            Self::Stopped => "report as stopped",
            Self::Hibernated => "report as hibernated",
            Self::Lost => "report as lost",
            Self::Delete => "delete",
        }
    }
}

/// Why an event is refused in a phase.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("cannot {} a VM that is {phase}: {}", event.verb(), self.advice())]
pub struct Denied {
    /// The phase the VM is in.
    pub phase: Phase,
    /// What was asked.
    pub event: LifecycleEvent,
}

impl Denied {
    const fn advice(&self) -> &'static str {
        match (self.phase, self.event) {
            (Phase::Deleting, _) => "it will be gone in a moment",
            (phase, _) if phase.is_transient() => "wait until it has finished and try again",
            (
                Phase::Stopped | Phase::Hibernated | Phase::Failed,
                LifecycleEvent::Pause | LifecycleEvent::Resume,
            ) => "start it first",
            (Phase::Paused, LifecycleEvent::Start) => "it is paused, resume it instead",
            _ => "it is in the wrong phase for that",
        }
    }
}

/// What an admitted request means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    /// Carry it out; the VM is then in this phase.
    Do(Phase),
    /// Nothing to do: it is already so.
    AlreadySo,
}

/// The phase after `event` in `phase`.
///
/// # Errors
/// [`Denied`] if the table has no such arrow.
pub const fn next(phase: Phase, event: LifecycleEvent) -> Result<Phase, Denied> {
    use LifecycleEvent as E;
    use Phase as P;
    Ok(match (phase, event) {
        (P::Creating, E::Created) => P::Stopped,
        (P::Stopped | P::Hibernated | P::Failed, E::Start) => P::Starting,
        (P::Starting, E::Started) => P::Running,
        (P::Running, E::Pause) => P::Paused,
        (P::Paused, E::Resume) => P::Running,
        (P::Starting | P::Running | P::Paused, E::Stop) => P::Stopping,
        (P::Running | P::Paused | P::Stopping, E::Stopped) => P::Stopped,
        (P::Stopping, E::Hibernated) => P::Hibernated,
        (P::Creating | P::Starting | P::Running | P::Paused | P::Stopping, E::Lost) => P::Failed,
        (P::Stopped | P::Hibernated | P::Starting | P::Running | P::Paused | P::Failed, E::Delete) => {
            P::Deleting
        }
        _ => return Err(Denied { phase, event }),
    })
}

/// Decides on a request: do it, leave it because it is already so, or refuse it.
///
/// # Errors
/// [`Denied`] if the request makes no sense in `phase`.
pub const fn admit(phase: Phase, event: LifecycleEvent) -> Result<Admission, Denied> {
    use LifecycleEvent as E;
    use Phase as P;
    match (phase, event) {
        (P::Running, E::Start | E::Resume)
        | (P::Paused, E::Pause)
        | (P::Stopped | P::Hibernated, E::Stop)
        | (P::Deleting, E::Delete) => Ok(Admission::AlreadySo),
        (P::Failed, E::Stop) => Ok(Admission::AlreadySo),
        _ => match next(phase, event) {
            Ok(phase) => Ok(Admission::Do(phase)),
            Err(denied) => Err(denied),
        },
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn event() -> impl Strategy<Value = LifecycleEvent> {
        prop::sample::select(LifecycleEvent::ALL.to_vec())
    }

    proptest! {
        /// Any sequence of events keeps the promises of the table.
        #[test]
        fn walks_keep_the_promises(events in prop::collection::vec(event(), 0..200)) {
            let mut phase = Phase::Creating;
            for event in events {
                match next(phase, event) {
                    Ok(after) => {
                        prop_assert_ne!(phase, Phase::Deleting, "nothing comes after deleting");
                        prop_assert_ne!(after, Phase::Creating, "nothing is created twice");
                        if after == Phase::Running {
                            prop_assert!(matches!(phase, Phase::Starting | Phase::Paused), "only an answer or a resume makes it run");
                        }
                        if after == Phase::Paused {
                            prop_assert_eq!(phase, Phase::Running);
                        }
                        phase = after;
                    }
                    Err(denied) => {
                        prop_assert_eq!(denied.phase, phase);
                        prop_assert!(!denied.to_string().is_empty());
                    }
                }
            }
        }

        /// `admit` never invents an arrow that `next` does not have.
        #[test]
        fn admission_follows_the_table(index in 0usize..Phase::ALL.len(), event in event()) {
            let phase = Phase::ALL[index];
            match admit(phase, event) {
                Ok(Admission::Do(after)) => prop_assert_eq!(next(phase, event), Ok(after)),
                Ok(Admission::AlreadySo) => {}
                Err(denied) => prop_assert_eq!(next(phase, event), Err(denied)),
            }
        }
    }

    #[test]
    fn every_phase_is_reachable_and_can_be_left_for_deletion() {
        let mut seen = BTreeSet::from([Phase::Creating]);
        loop {
            let more: BTreeSet<Phase> = seen
                .iter()
                .flat_map(|phase| LifecycleEvent::ALL.iter().filter_map(|event| next(*phase, *event).ok()))
                .collect();
            if more.is_subset(&seen) {
                break;
            }
            seen.extend(more);
        }
        assert_eq!(seen.len(), Phase::ALL.len());
    }

    #[test]
    fn a_second_delete_is_not_an_error() {
        assert_eq!(admit(Phase::Deleting, LifecycleEvent::Delete), Ok(Admission::AlreadySo));
    }
}
