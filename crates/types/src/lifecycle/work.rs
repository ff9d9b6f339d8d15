//! Work on a VM beside the events of its life, and the refusals of both.

use super::{LifecycleEvent, Phase};

/// Work on a VM that leaves its phase as it is, or passes through several phases.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Work {
    /// A branch of its state: for a fork or a snapshot.
    Branch,
    /// Its memory goes to disk and its machine ends.
    Hibernate,
    /// It goes back to an earlier state of its own.
    Rollback,
    /// Its memory is made smaller or larger.
    ResizeMemory,
    /// Its identity is pushed once more before it waits in a pool.
    Rehearse,
}

impl Work {
    /// All kinds of work, for tables and tests.
    pub const ALL: [Self; 5] =
        [Self::Branch, Self::Hibernate, Self::Rollback, Self::ResizeMemory, Self::Rehearse];

    const fn verb(self) -> &'static str {
        match self {
            Self::Branch => "branch",
            Self::Hibernate => "hibernate",
            Self::Rollback => "roll back",
            Self::ResizeMemory => "resize the memory of",
            Self::Rehearse => "rehearse the identity of",
        }
    }
}

/// The table of [`Work`]: whether it may begin in `phase`.
///
/// # Errors
/// [`Denied`] if it may not.
pub const fn permits(phase: Phase, work: Work) -> Result<(), Denied> {
    use Phase as P;
    let permitted = match work {
        Work::Hibernate => matches!(phase, P::Running | P::Paused),
        // One that is hibernated is woken for it, as for a command in it.
        Work::Branch | Work::ResizeMemory => matches!(phase, P::Running | P::Paused | P::Hibernated),
        Work::Rehearse => matches!(phase, P::Running),
        Work::Rollback => {
            matches!(phase, P::Running | P::Paused | P::Stopped | P::Hibernated | P::Failed)
        }
    };
    if permitted { Ok(()) } else { Err(Denied { phase, asked: Asked::Work(work) }) }
}

/// What was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asked {
    /// A change of phase.
    Event(LifecycleEvent),
    /// Work in the phase.
    Work(Work),
}

impl Asked {
    const fn verb(self) -> &'static str {
        match self {
            Self::Event(event) => event.verb(),
            Self::Work(work) => work.verb(),
        }
    }
}

/// Why an event or work is refused in a phase.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("cannot {} a VM that is {phase}: {}", asked.verb(), self.advice())]
pub struct Denied {
    /// The phase the VM is in.
    pub phase: Phase,
    /// What was asked.
    pub asked: Asked,
}

impl Denied {
    /// What to do about it.
    #[must_use]
    pub const fn advice(&self) -> &'static str {
        match (self.phase, self.asked) {
            (Phase::Deleting, _) => "it will be gone in a moment",
            (Phase::Deleted, _) => "it is gone",
            (phase, _) if phase.is_transient() => "wait until it has finished and try again",
            (
                Phase::Stopped | Phase::Hibernated | Phase::Failed,
                Asked::Event(LifecycleEvent::Pause | LifecycleEvent::Resume) | Asked::Work(_),
            ) => "start it first",
            (Phase::Paused, Asked::Event(LifecycleEvent::Start)) => "it is paused, resume it instead",
            (Phase::Paused, Asked::Work(_)) => "resume it first",
            (Phase::Pooled, _) => "it waits in a pool, acquire one from there",
            _ => "it is in the wrong phase for that",
        }
    }
}
