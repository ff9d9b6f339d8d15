//! Failed system calls as they are reported to the host.

use microvm_protocol::messages::FailureKind;
use rustix::io::Errno;

use crate::core::failure::AgentError;

impl AgentError {
    /// A failed system call during `action` (for example "open /etc/x"), classified by its error number.
    pub(in crate::platform) fn system(
        action: impl std::fmt::Display,
        error: impl Into<std::io::Error>,
    ) -> Self {
        let error = error.into();
        let kind = match error.raw_os_error().map(Errno::from_raw_os_error) {
            Some(Errno::NOENT | Errno::SRCH | Errno::NXIO | Errno::NODEV) => FailureKind::NotFound,
            Some(Errno::ACCESS | Errno::PERM | Errno::ROFS) => FailureKind::Forbidden,
            Some(Errno::EXIST | Errno::NOTEMPTY | Errno::BUSY | Errno::TXTBSY) => FailureKind::Conflict,
            Some(Errno::NOSPC | Errno::DQUOT | Errno::NOMEM | Errno::MFILE | Errno::NFILE | Errno::AGAIN) => {
                FailureKind::Exhausted
            }
            Some(
                Errno::NOTDIR
                | Errno::ISDIR
                | Errno::INVAL
                | Errno::NAMETOOLONG
                | Errno::LOOP
                | Errno::XDEV
                | Errno::FBIG
                | Errno::TOOBIG
                | Errno::NOEXEC,
            ) => FailureKind::Invalid,
            Some(Errno::NOSYS | Errno::OPNOTSUPP) => FailureKind::Unsupported,
            Some(Errno::CONNREFUSED | Errno::CONNRESET | Errno::HOSTUNREACH) => FailureKind::Unavailable,
            _ => FailureKind::Internal,
        };
        Self::new(kind, format!("{action}: {error}"))
    }
}
