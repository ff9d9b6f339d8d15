//! Report of what an abandoned piece of work may have left on the server.

use microvm_client::Client;
use microvm_client::sandbox::{self, CLAIM_LABEL, Leftover};
use microvm_types::VmId;

use crate::notice::say;

/// Lists leftovers on standard error, each with the command that shows or deletes it.
pub(crate) fn tell(leftovers: impl IntoIterator<Item = Leftover>) {
    for leftover in leftovers {
        say(&match leftover {
            Leftover::Undeleted { id, error } => {
                format!("the VM {id} could not be deleted ({error}): `microvm rm {id}` deletes it")
            }
            Leftover::Unknown { mark, reason } => format!(
                "it is unknown if a VM was created ({reason}): `microvm ls --label {CLAIM_LABEL}={mark}` shows it if so"
            ),
        });
    }
}

/// Deletes a VM and tells if that failed.
pub(crate) async fn delete(client: &Client, id: &VmId) {
    tell(sandbox::delete(client, id).await);
}
