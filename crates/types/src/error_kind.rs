//! The closed set of error kinds every public error maps to.

use serde::{Deserialize, Serialize};

/// What class of failure an error is. One table maps each kind to an HTTP status, an exit code and whether a
/// retry can help; nothing else may decide those.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum ErrorKind {
    /// The request is malformed or asks for something that can never be.
    Invalid,
    /// The caller did not say who it is.
    Unauthenticated,
    /// The caller may not do this.
    Forbidden,
    /// The named thing does not exist.
    NotFound,
    /// The request clashes with the present state (name taken, wrong phase).
    Conflict,
    /// This host, driver or guest cannot do it at all.
    Unsupported,
    /// A limit or resource is used up (quota, memory, disk).
    Exhausted,
    /// Something needed is not there right now; a retry may help.
    Unavailable,
    /// A deadline passed.
    Timeout,
    /// A defect or an unexpected failure of the host.
    Internal,
}

impl ErrorKind {
    /// All kinds, for tables and tests.
    pub const ALL: [Self; 10] = [
        Self::Invalid,
        Self::Unauthenticated,
        Self::Forbidden,
        Self::NotFound,
        Self::Conflict,
        Self::Unsupported,
        Self::Exhausted,
        Self::Unavailable,
        Self::Timeout,
        Self::Internal,
    ];

    /// HTTP status code (RFC 9110) of an error of this kind.
    #[must_use]
    pub const fn http_status(self) -> u16 {
        match self {
            Self::Invalid => 400,
            Self::Unauthenticated => 401,
            Self::Forbidden => 403,
            Self::NotFound => 404,
            Self::Conflict => 409,
            Self::Unsupported => 501,
            Self::Exhausted => 507,
            Self::Unavailable => 503,
            Self::Timeout => 504,
            Self::Internal => 500,
        }
    }

    /// Exit code of the command line for an error of this kind. 100 and up, so that it is never mistaken for the
    /// usual exit codes of a command run in a guest (0–2, 124–165).
    #[must_use]
    pub const fn exit_code(self) -> u8 {
        match self {
            Self::Internal => 100,
            Self::Invalid => 101,
            Self::NotFound => 102,
            Self::Conflict => 103,
            Self::Unsupported => 104,
            Self::Exhausted => 105,
            Self::Unavailable => 106,
            Self::Timeout => 107,
            Self::Forbidden => 108,
            Self::Unauthenticated => 109,
        }
    }

    /// Whether the same request may succeed later without anyone changing it.
    #[must_use]
    pub const fn retry_helps(self) -> bool {
        matches!(self, Self::Unavailable | Self::Timeout | Self::Exhausted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_its_own_exit_code_and_an_error_status() {
        let mut codes: Vec<u8> = ErrorKind::ALL.iter().map(|kind| kind.exit_code()).collect();
        codes.sort_unstable();
        codes.dedup();
        assert_eq!(codes.len(), ErrorKind::ALL.len());
        assert!(ErrorKind::ALL.iter().all(|kind| (400..600).contains(&kind.http_status())));
    }
}
