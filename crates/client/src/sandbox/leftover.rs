//! Leftovers of abandoned work on the server.

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
