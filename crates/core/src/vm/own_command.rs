//! Commands that the service runs in a guest by itself: no user finds them in a list.

use std::time::Duration;

use futures::StreamExt as _;
use microvm_ports::guest::ProcessEvent;
use microvm_ports::waiting::within;
use microvm_ports::{Guest, GuestError};
use microvm_types::ErrorKind;
use microvm_types::exec::{ExecRequest, ExitStatus};

/// Sends a guest the way that every first command goes. One without `true` has answered too.
pub(crate) async fn probe(guest: &dyn Guest, deadline: Duration) -> Result<(), GuestError> {
    match run(guest, vec!["true".to_owned()], deadline).await {
        Ok(_) | Err(GuestError::Refused { kind: ErrorKind::NotFound, .. }) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Runs a command and drops what it prints.
pub(crate) async fn run(
    guest: &dyn Guest,
    command: Vec<String>,
    deadline: Duration,
) -> Result<ExitStatus, GuestError> {
    let timeout_ms = u64::try_from(deadline.as_millis()).ok();
    // Unlisted, so that `processes` shows users their own commands only.
    let request = ExecRequest { command, timeout_ms, unlisted: true, ..ExecRequest::default() };
    let ended = async {
        let mut process = guest.exec(&request).await?;
        while let Some(event) = process.events.next().await {
            match event {
                ProcessEvent::Exited(status) => return Ok(status),
                ProcessEvent::Lost(error) => return Err(error),
                ProcessEvent::Stdout(_) | ProcessEvent::Stderr(_) | ProcessEvent::UpToDate => {}
            }
        }
        Err(GuestError::Timeout { action: "tell how its command ended", after: deadline })
    };
    // The agent ends it at the deadline; the rest is for its answer.
    let after = deadline + deadline / 2;
    let timeout = GuestError::Timeout { action: "end a command in time", after };
    within(after, ended).await.unwrap_or(Err(timeout))
}
