//! Commands whose output is collected.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Json;
use axum::extract::State;
use futures_util::StreamExt;
use microvm_api::exec::{CommandLine, Execute, Executed};
use microvm_api::output::{Collected, Outputs};
use microvm_ports::guest::ProcessEvent;
use microvm_types::exec::ExecRequest;

use crate::app::App;
use crate::extract::{Body, Vm};
use crate::failure::Failure;

/// Where output is that an answer leaves out.
const REST: &str = "the last MiB of each output can be read for some minutes: `read` with the id in `process`, on the \
                    WebSocket of `exec`; write more than 10 MB to a file";

/// Longest time a command may be given.
const TIMEOUT_MAX: u64 = 3600;

pub(crate) async fn execute(
    State(app): State<Arc<App>>,
    Vm(vm): Vm,
    Body(request): Body<Execute>,
) -> Result<Json<Executed>, Failure> {
    let command = match request.command {
        CommandLine::Shell(text) => vec!["sh".to_owned(), "-c".to_owned(), text],
        CommandLine::Arguments(arguments) => arguments,
    };
    if !(1..=TIMEOUT_MAX).contains(&request.timeout) {
        let detail = format!("timeout: {} is not possible, 1 to {TIMEOUT_MAX} seconds are", request.timeout);
        return Err(Failure::invalid("invalid_field", detail));
    }
    let request = ExecRequest {
        command,
        environment: request.env,
        working_directory: request.working_dir,
        user: request.user,
        timeout_ms: Some(request.timeout * 1000),
        ..ExecRequest::default()
    };
    check(&request)?;
    let guest = app.service.guest(&vm).await?;
    let begun = Instant::now();
    let mut process = guest.exec(&request).await?;
    let (mut stdout, mut stderr) = (Collected::default(), Collected::default());
    let status = loop {
        match process.events.next().await {
            Some(ProcessEvent::Stdout(bytes)) => stdout.add(&bytes),
            Some(ProcessEvent::Stderr(bytes)) => stderr.add(&bytes),
            Some(ProcessEvent::Exited(status)) => break status,
            Some(ProcessEvent::Lost(error)) => return Err(error.into()),
            Some(ProcessEvent::UpToDate) | None => return Err(super::exec::ended_without_status()),
        }
    };
    let error = match status {
        _ if status.timed_out => Some(format!("its time of {:?} was up", timeout(&request))),
        status => status.signal.map(|signal| format!("it was ended by signal {signal}")),
    };
    let Outputs { stdout, stderr, stdout_base64, stderr_base64, truncated, omitted } =
        Outputs::new(stdout, stderr, REST);
    Ok(Json(Executed {
        success: status.shell_code() == 0,
        exit_code: i32::from(status.shell_code()),
        stdout,
        stderr,
        stdout_base64,
        stderr_base64,
        truncated,
        omitted,
        process: process.id,
        execution_time_ms: u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX),
        error,
        timestamp: app.now(),
    }))
}

fn timeout(request: &ExecRequest) -> Duration {
    Duration::from_millis(request.timeout_ms.unwrap_or_default())
}

/// What can be known to be wrong before the guest is asked.
pub(crate) fn check(request: &ExecRequest) -> Result<(), Failure> {
    let refuse = |detail: String| Err(Failure::invalid("command_invalid", detail));
    if request.command.first().is_none_or(String::is_empty) {
        return refuse("command: it is empty, name a program".to_owned());
    }
    if request.command.iter().any(|argument| argument.contains('\0')) {
        return refuse("command: no argument may hold a NUL character".to_owned());
    }
    let bad = |(key, value): (&String, &String)| {
        key.is_empty() || key.contains(['=', '\0']) || value.contains('\0')
    };
    if let Some((key, _)) = request.environment.iter().find(|pair| bad(*pair)) {
        return refuse(format!(
            "environment: `{}` cannot be set, names hold no `=` and no NUL",
            key.escape_default()
        ));
    }
    if request.timeout_ms == Some(0) {
        return refuse("timeout: zero is not possible, leave it out for none".to_owned());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn impossible_commands_are_refused() {
        let request = |command: &[&str]| ExecRequest {
            command: command.iter().map(|&part| part.to_owned()).collect(),
            ..ExecRequest::default()
        };
        assert!(check(&request(&["true"])).is_ok());
        for command in [&[][..], &[""], &["a\0b"]] {
            assert!(check(&request(command)).is_err(), "{command:?}");
        }
    }
}
