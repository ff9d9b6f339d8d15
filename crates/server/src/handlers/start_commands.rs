//! Start commands of a VM: which ran, and how those that failed did.

use std::time::Duration;

use axum::Json;
use futures_util::StreamExt as _;
use microvm_api::guest::{StartCommand, StartCommands};
use microvm_api::operations::guest;
use microvm_ports::guest::{Guest, ProcessEvent};
use microvm_ports::waiting::within;
use microvm_types::exec::{OutputOffsets, ProcessInfo};
use microvm_types::{ErrorKind, ProcessId};

use crate::call::Call;
use crate::failure::Failure;
use crate::session::Session;

/// Bytes of each output of a failed command that are shown: its end.
const TAIL: u64 = 2048;
/// Most commands of which outputs are shown; one that fails is the last, so there is more than one only by a strange agent.
const MOST_SHOWN: usize = 4;
/// Time for the guest to tell.
const PATIENCE: Duration = Duration::from_secs(5);

pub(crate) async fn list(
    app: Session,
    Call { path: vm, charge, .. }: Call<guest::StartCommands>,
) -> Result<Json<StartCommands>, Failure> {
    charge.hold(crate::limits::OUTGOING)?;
    let Some(guest) = app.services.vms.guest_at_hand(&vm, app.operation)? else {
        let detail = "the agent of the VM does not answer now: its start commands are told while it runs";
        return Err(Failure::new(ErrorKind::Conflict, "guest_not_at_hand", detail));
    };
    let asked = within(PATIENCE, told(&*guest)).await;
    let commands = asked.map_err(|_| {
        let detail = format!("the guest did not tell its start commands within {PATIENCE:?}");
        Failure::new(ErrorKind::Timeout, "guest_timeout", detail)
    })??;
    Ok(Json(StartCommands { commands }))
}

async fn told(guest: &dyn Guest) -> Result<Vec<StartCommand>, Failure> {
    // First: what has a process by then is in the list.
    let not_started = guest.health().await?.start_command_not_started;
    let mut processes = guest.processes().await?;
    processes.retain(|process| process.id.is_start_command());
    // Their ids hold their numbers.
    processes.sort_by(|one, other| one.id.as_str().cmp(other.id.as_str()));
    let (mut commands, mut shown) = (Vec::with_capacity(processes.len()), 0);
    for process in processes {
        let failed = process.exit.is_some_and(|exit| exit.shell_code() != 0);
        let (mut stdout, mut stderr, mut reason) = (None, None, None);
        if failed && shown < MOST_SHOWN {
            shown += 1;
            match ends(guest, &process).await {
                Ok(ends) => (stdout, stderr) = (Some(ends.0), Some(ends.1)),
                // All else about it, and about the others, is worth telling.
                Err(error) => reason = Some(format!("its output cannot be read: {}", error.0.detail)),
            }
        }
        commands.push(StartCommand {
            // Run by `sh -c`, or by what the system has in its place: the text is the last word.
            command: process.command.last().cloned().unwrap_or_default(),
            command_omitted: process.command_omitted,
            process: Some(process.id),
            failed,
            reason,
            exit_code: process.exit.map(|exit| exit.whole_code().into()),
            stdout,
            stderr,
        });
    }
    commands.extend(not_started.map(|failure| StartCommand {
        command: failure.command,
        command_omitted: failure.command_omitted,
        process: None,
        failed: true,
        reason: Some(format!("it could not be started: {}", failure.reason)),
        exit_code: None,
        stdout: None,
        stderr: None,
    }));
    Ok(commands)
}

/// The ends of both outputs; bytes that are no UTF-8 are replaced.
async fn ends(guest: &dyn Guest, process: &ProcessInfo) -> Result<(String, String), Failure> {
    let id: &ProcessId = &process.id;
    let from = OutputOffsets {
        stdout: Some(process.stdout_bytes.saturating_sub(TAIL)),
        stderr: Some(process.stderr_bytes.saturating_sub(TAIL)),
    };
    let mut reading = guest.read_output(id, from, false).await?;
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    // What it wrote since it was listed is not waited for: a child that it left behind may write for ever. One output that is all there
    // does not end the reading of the other.
    let counted = [&process.stdout_bytes, &process.stderr_bytes]
        .map(|end| usize::try_from((*end).min(TAIL)).unwrap_or(usize::MAX));
    while stdout.len() < counted[0] || stderr.len() < counted[1] {
        match reading.events.next().await {
            Some(ProcessEvent::Stdout(bytes)) => keep(&mut stdout, &bytes, counted[0]),
            Some(ProcessEvent::Stderr(bytes)) => keep(&mut stderr, &bytes, counted[1]),
            Some(ProcessEvent::Lost(error)) => return Err(error.into()),
            Some(ProcessEvent::Exited(_) | ProcessEvent::UpToDate) | None => break,
        }
    }
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ok((text(&stdout), text(&stderr)))
}

/// Adds as much as there is room for: what comes behind was written after the process was listed.
fn keep(output: &mut Vec<u8>, bytes: &[u8], most: usize) {
    let room = most.saturating_sub(output.len()).min(bytes.len());
    output.extend_from_slice(&bytes[..room]);
}
