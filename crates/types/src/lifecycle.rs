//! The table of what a VM may do next: pure data, walked by a property test.

mod work;

use std::fmt;

use serde::{Deserialize, Serialize};

pub use self::work::{Asked, Denied, Work, permits};

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
    /// Its processors are stopped; memory and disk are kept.
    Paused,
    /// It is ready, paused, and waits in a pool for whoever acquires it.
    Pooled,
    /// Its machine is being shut down.
    Stopping,
    /// Its machine was lost; the reason is kept with the VM. It can be started again or deleted.
    Failed,
    /// It is being removed.
    Deleting,
    /// It is gone, with all its files. Never stored: there is no record any more.
    #[serde(skip)]
    Deleted,
}

impl Phase {
    /// All phases, for tables and tests.
    pub const ALL: [Self; 11] = [
        Self::Creating,
        Self::Stopped,
        Self::Hibernated,
        Self::Starting,
        Self::Running,
        Self::Paused,
        Self::Pooled,
        Self::Stopping,
        Self::Failed,
        Self::Deleting,
        Self::Deleted,
    ];

    /// The phases that a VM can be seen in and found by.
    pub const SHOWN: [Self; 10] = [
        Self::Creating,
        Self::Stopped,
        Self::Hibernated,
        Self::Starting,
        Self::Running,
        Self::Paused,
        Self::Pooled,
        Self::Stopping,
        Self::Failed,
        Self::Deleting,
    ];

    /// Whether a machine process may exist in this phase.
    #[must_use]
    pub const fn has_machine(self) -> bool {
        matches!(
            self,
            Self::Starting | Self::Running | Self::Paused | Self::Pooled | Self::Stopping | Self::Deleting
        )
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
            Self::Pooled => "pooled",
            Self::Stopping => "stopping",
            Self::Failed => "failed",
            Self::Deleting => "deleting",
            Self::Deleted => "deleted",
        }
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.as_str())
    }
}

/// What happens to a VM: a request admitted, or a fact.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LifecycleEvent {
    /// Its files are complete, and it is not to run yet.
    Created,
    /// A request to run it.
    Start,
    /// Its agent answered and confirmed its identity.
    Started,
    /// A request to stop its processors, or a VMM that stopped them.
    Pause,
    /// A request to go on.
    Resume,
    /// It is ready for whoever acquires it.
    Pooled,
    /// Somebody acquires it from its pool.
    Claim,
    /// A request to shut it down.
    Stop,
    /// Its machine ended as asked, or the guest shut itself down.
    Stopped,
    /// Its machine ended, and its memory is on disk.
    Hibernated,
    /// The memory that it hibernated with is given up.
    Forgotten,
    /// Its machine was lost, or a step towards running failed.
    Lost,
    /// A request to remove it, or the undoing of its creation.
    Delete,
    /// Something of it could not be removed.
    NotDeleted,
    /// Nothing is left of it.
    Deleted,
}

impl LifecycleEvent {
    /// All events, for tables and tests.
    pub const ALL: [Self; 15] = [
        Self::Created,
        Self::Start,
        Self::Started,
        Self::Pause,
        Self::Resume,
        Self::Pooled,
        Self::Claim,
        Self::Stop,
        Self::Stopped,
        Self::Hibernated,
        Self::Forgotten,
        Self::Lost,
        Self::Delete,
        Self::NotDeleted,
        Self::Deleted,
    ];

    pub(crate) const fn verb(self) -> &'static str {
        match self {
            Self::Created => "finish creating",
            Self::Start => "start",
            Self::Started => "report as started",
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::Pooled => "put into its pool",
            Self::Claim => "acquire",
            Self::Stop => "stop",
            Self::Stopped => "report as stopped",
            Self::Hibernated => "report as hibernated",
            Self::Forgotten => "give up the memory of",
            Self::Lost => "report as lost",
            Self::Delete => "delete",
            Self::NotDeleted => "report as not deleted",
            Self::Deleted => "report as deleted",
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
        // A VM that is created to run is never seen as stopped in between.
        (P::Creating | P::Starting, E::Started) => P::Running,
        (P::Running, E::Pause) => P::Paused,
        (P::Paused, E::Resume) => P::Running,
        (P::Running, E::Pooled) => P::Pooled,
        (P::Pooled, E::Claim) => P::Running,
        (P::Starting | P::Running | P::Paused | P::Pooled, E::Stop) => P::Stopping,
        (P::Starting | P::Running | P::Paused | P::Pooled | P::Stopping, E::Stopped) => P::Stopped,
        // A wake that was overtaken by a stop leaves its memory where it was.
        (P::Starting | P::Stopping, E::Hibernated) => P::Hibernated,
        (P::Hibernated, E::Forgotten) => P::Stopped,
        (P::Creating | P::Starting | P::Running | P::Paused | P::Pooled | P::Stopping, E::Lost) => P::Failed,
        (
            P::Creating
            | P::Stopped
            | P::Hibernated
            | P::Starting
            | P::Running
            | P::Paused
            | P::Pooled
            | P::Stopping
            | P::Failed,
            E::Delete,
        ) => P::Deleting,
        (P::Deleting, E::NotDeleted) => P::Failed,
        (P::Deleting, E::Deleted) => P::Deleted,
        _ => return Err(Denied { phase, asked: Asked::Event(event) }),
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
                        prop_assert_ne!(phase, Phase::Deleted, "nothing comes after the end");
                        prop_assert_ne!(after, Phase::Creating, "nothing is created twice");
                        if phase == Phase::Deleting {
                            prop_assert!(matches!(after, Phase::Deleted | Phase::Failed), "a deletion ends or fails");
                        }
                        if after == Phase::Running {
                            prop_assert!(
                                matches!(phase, Phase::Creating | Phase::Starting | Phase::Paused | Phase::Pooled),
                                "only an answer, a resume or a claim makes it run"
                            );
                        }
                        if matches!(after, Phase::Paused | Phase::Pooled) {
                            prop_assert_eq!(phase, Phase::Running);
                        }
                        if after == Phase::Deleted {
                            prop_assert_eq!(phase, Phase::Deleting);
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

    /// Whatever phase a crash or a race leaves a VM in, its owner can get rid of it.
    #[test]
    fn every_vm_can_be_deleted() {
        for phase in Phase::ALL.into_iter().filter(|phase| *phase != Phase::Deleted) {
            assert!(admit(phase, LifecycleEvent::Delete).is_ok(), "{phase}");
        }
    }

    /// Work needs a machine, unless it brings its own or wakes the VM.
    #[test]
    fn work_is_permitted_only_where_it_can_be_done() {
        for phase in Phase::ALL {
            for work in Work::ALL {
                if permits(phase, work).is_ok() {
                    assert!(!phase.is_transient(), "{work:?} while {phase}");
                    assert!(
                        phase.has_machine() || phase == Phase::Hibernated || work == Work::Rollback,
                        "{work:?} while {phase}"
                    );
                    assert_ne!(phase, Phase::Pooled, "{work:?}: what waits in a pool is nobody's");
                }
            }
        }
    }

    #[test]
    fn a_second_delete_is_not_an_error() {
        assert_eq!(admit(Phase::Deleting, LifecycleEvent::Delete), Ok(Admission::AlreadySo));
    }
}
