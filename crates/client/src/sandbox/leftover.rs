//! VMs that their creator deletes: their limits, their deletion, and what may be left of them.

use microvm_types::vm::Limits;
use microvm_types::{ErrorKind, VmId, VmRef};

use crate::client::Client;
use crate::error::ClientError;

/// Key of the label that a VM of a [`crate::sandbox::Claim`] carries.
pub const CLAIM_LABEL: &str = "microvm.run";

/// Something that may be left on the server, for people to look at.
#[derive(Debug)]
pub enum Leftover {
    /// A VM that could not be deleted.
    Undeleted {
        /// That VM.
        id: VmId,
        /// Reason of the failure.
        error: ClientError,
    },
    /// The server did not say whether it created a VM. If it did, the VM has the label [`CLAIM_LABEL`] with this value.
    Unknown {
        /// Value of the label.
        mark: String,
        /// Reason why the outcome is unknown, in words.
        reason: String,
    },
}

impl std::fmt::Display for Leftover {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Undeleted { id, error } => write!(formatter, "the VM {id} could not be deleted ({error})"),
            Self::Unknown { mark, reason } => write!(
                formatter,
                "it is unknown if a VM was created ({reason}); it has the label {CLAIM_LABEL}={mark} if so"
            ),
        }
    }
}

/// Deletes a VM; one that is gone already counts as deleted. Returns what is left if that failed.
pub async fn delete(client: &Client, id: &VmId) -> Option<Leftover> {
    match client.delete_vm(&VmRef::from(id.clone())).await {
        Ok(()) => None,
        // An ephemeral VM deletes itself.
        Err(ClientError::Problem(problem)) if problem.kind == ErrorKind::NotFound => None,
        Err(error) => Some(Leftover::Undeleted { id: id.clone(), error }),
    }
}

/// Seconds without use after which a temporary VM deletes itself.
pub(crate) const IDLE_NET: u64 = 300;

/// Limits of a VM that its creator deletes: it deletes itself after 300 seconds without use, in case the creator was killed
/// before.
#[must_use]
pub fn temporary() -> Limits {
    Limits { ephemeral: true, idle_seconds: Some(IDLE_NET), ..Limits::default() }
}
