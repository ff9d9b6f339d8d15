//! Reasons for the end of a VM's machine.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Reason for which a VM stopped, hibernated or failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum StopReason {
    /// Somebody asked for it: to stop, restart, hibernate or roll back.
    User,
    /// Nobody used it for as long as its limits say.
    IdleLimit,
    /// Its lifetime had passed.
    LifetimeLimit,
    /// Its guest powered off.
    GuestPoweredOff,
    /// Its guest reset itself; the VM starts again.
    GuestReset,
    /// The kernel of its guest panicked.
    GuestPanic,
    /// Its VMM ended by itself, or somebody killed it.
    VmmDied,
    /// Its VMM was gone when a server took it up: the host was restarted, or the VMM ended while no server ran.
    LostWhileServerDown,
    /// The server ended, or was killed, while it started.
    ServerShutdown,
    /// It did not start, for want of memory or disk space on the host, or within what the operator allows.
    HostOutOfSpace,
    /// It did not start, for another reason.
    StartFailed,
    /// Its machine could not be ended.
    NotEnded,
    /// Something of it could not be deleted.
    NotDeleted,
    /// Its record is older than its disk: an older copy of the database was put back.
    RecordOutdated,
    /// Not known: an older server did not note it, or a later one noted a reason that this one has not.
    #[serde(other)]
    Unknown,
}

impl StopReason {
    /// Its words for people.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::User => "asked for",
            Self::IdleLimit => "its idle limit passed",
            Self::LifetimeLimit => "its lifetime passed",
            Self::GuestPoweredOff => "the guest powered off",
            Self::GuestReset => "the guest reset itself",
            Self::GuestPanic => "the guest kernel panicked",
            Self::VmmDied => "its VMM died",
            Self::LostWhileServerDown => "its VMM was gone when the server started",
            Self::ServerShutdown => "the server ended while it started",
            Self::HostOutOfSpace => "the host had no room for it",
            Self::StartFailed => "it did not start",
            Self::NotEnded => "its machine could not be ended",
            Self::NotDeleted => "it could not be deleted",
            Self::RecordOutdated => "its record is older than its disk",
            Self::Unknown => "for a reason that is not known",
        }
    }
}

impl fmt::Display for StopReason {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.as_str())
    }
}

/// The last time that a VM stopped, hibernated or failed. Kept while it runs again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastStop {
    /// Reason.
    pub reason: StopReason,
    /// When, in milliseconds since 1970-01-01T00:00:00Z; of a stop under way, when it was asked for;
    /// of what happened while no server ran, when a server noticed it.
    pub at_ms: i64,
    /// What was observed, where there is more to say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_of_a_later_version_is_read() {
        let later = r#"{"reason":"moved_to_another_host","at_ms":7,"by":"somebody"}"#;
        let read: LastStop = serde_json::from_str(later).expect("a record stays readable");
        assert_eq!(read, LastStop { reason: StopReason::Unknown, at_ms: 7, detail: None });
        assert_eq!(serde_json::to_value(StopReason::GuestPoweredOff).unwrap(), "guest_powered_off");
    }
}
