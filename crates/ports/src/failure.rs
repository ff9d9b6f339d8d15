//! Errors of machines and hypervisors, and the reasons why machines end.

use std::time::Duration;

use microvm_types::ErrorKind;

/// Reason for the end of a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MachineExit {
    /// The guest powered itself off.
    GuestShutdown,
    /// The guest reset itself. (Machines do not reboot in place.)
    GuestReset,
    /// The guest's kernel panicked.
    GuestPanic,
    /// [`crate::Machine::kill`] ended it.
    Killed,
    /// The VMM process ended by itself or by somebody's signal; says how and, if it can, why.
    Vmm(String),
}

impl std::fmt::Display for MachineExit {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::GuestShutdown => formatter.write_str("the guest powered off"),
            Self::GuestReset => formatter.write_str("the guest reset itself"),
            Self::GuestPanic => formatter.write_str("the guest kernel panicked"),
            Self::Killed => formatter.write_str("it was ended on request"),
            Self::Vmm(how) => write!(formatter, "the VMM process ended: {how}"),
        }
    }
}

/// Failure of launching a machine or finding it again.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// The VMM program is not installed.
    #[error("{program} was not found: {advice}")]
    ProgramMissing {
        /// Program looked for.
        program: String,
        /// Advice on getting it.
        advice: String,
    },
    /// The VMM program is older than this driver can use.
    #[error("{program} has version {found}, at least {needed} is needed: install a newer one")]
    ProgramTooOld {
        /// Program asked.
        program: String,
        /// Its version.
        found: String,
        /// The lowest version that works.
        needed: String,
    },
    /// The machine description cannot be carried out by this driver.
    #[error("this machine cannot be built: {0}")]
    Spec(String),
    /// The state was saved by another VMM build or on another processor.
    #[error(
        "the saved state needs {what} `{needed}`, here is `{here}`: restore it where it was saved, or start anew"
    )]
    Incompatible {
        /// Name of the need that is not met.
        what: String,
        /// Value that the state was saved with.
        needed: String,
        /// Value on this host.
        here: String,
    },
    /// A folder of the host cannot be shared.
    #[error("the folder cannot be shared: {0}")]
    Share(String),
    /// The saved state was refused by the VMM.
    #[error("the saved state could not be loaded: {0}")]
    BadState(String),
    /// The host cannot back the memory right now.
    #[error(
        "the host has {available_mib} MiB of memory available, {needed_mib} MiB are needed: stop other VMs or ask for less"
    )]
    NoMemory {
        /// MiB asked for, overhead included.
        needed_mib: u64,
        /// MiB available.
        available_mib: u64,
    },
    /// A step of starting the process failed.
    #[error("the VMM could not be started while {step}: {detail}")]
    Process {
        /// The step that failed.
        step: &'static str,
        /// Error of the host.
        detail: String,
    },
    /// The VMM process ended before it was ready.
    #[error("the VMM ended before the machine was ready: {detail}")]
    Died {
        /// Its exit status and last words.
        detail: String,
    },
    /// The VMM did not answer in time.
    #[error("the VMM did not answer within {after:?} while {step}")]
    Timeout {
        /// The step that failed.
        step: &'static str,
        /// Time that was waited.
        after: Duration,
    },
    /// No machine of that record exists any more.
    #[error("the machine is gone: {0}")]
    Gone(String),
}

impl LaunchError {
    /// The class of this failure.
    #[must_use]
    pub const fn kind(&self) -> ErrorKind {
        match self {
            Self::ProgramMissing { .. } | Self::ProgramTooOld { .. } | Self::Share(_) => {
                ErrorKind::Unsupported
            }
            Self::Spec(_) => ErrorKind::Invalid,
            Self::Incompatible { .. } => ErrorKind::Conflict,
            Self::BadState(_) => ErrorKind::Internal,
            Self::NoMemory { .. } => ErrorKind::Exhausted,
            Self::Process { .. } | Self::Died { .. } => ErrorKind::Internal,
            Self::Timeout { .. } => ErrorKind::Timeout,
            Self::Gone(_) => ErrorKind::NotFound,
        }
    }
}

/// Failure of an operation on a living machine.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// The machine has ended.
    #[error("the machine has ended: {0}")]
    Exited(MachineExit),
    /// The VMM refused.
    #[error("the VMM refused to {action}: {detail}")]
    Refused {
        /// Action that was asked of it.
        action: &'static str,
        /// Its answer.
        detail: String,
    },
    /// The VMM did not answer in time.
    #[error("the VMM did not {action} within {after:?}")]
    Timeout {
        /// Action that was asked of it.
        action: &'static str,
        /// Time that was waited.
        after: Duration,
    },
}

impl MachineError {
    /// The class of this failure.
    #[must_use]
    pub const fn kind(&self) -> ErrorKind {
        match self {
            Self::Exited(_) => ErrorKind::Conflict,
            Self::Refused { .. } => ErrorKind::Internal,
            Self::Timeout { .. } => ErrorKind::Timeout,
        }
    }
}
