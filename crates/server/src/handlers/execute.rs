//! Commands whose output is collected.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Json;
use axum::extract::State;
use futures_util::StreamExt;
use microvm_api::exec::{CommandLine, Execute, Executed};
use microvm_ports::guest::ProcessEvent;
use microvm_types::exec::ExecRequest;

use crate::app::App;
use crate::extract::{Body, Vm};
use crate::failure::Failure;

/// Most that is kept of each output, in bytes.
const OUTPUT_MAX: usize = 10_000_000;

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
    let (mut stdout, mut stderr) = (Output::default(), Output::default());
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
    Ok(Json(Executed {
        success: status.shell_code() == 0,
        exit_code: i32::from(status.shell_code()),
        truncated: stdout.truncated || stderr.truncated,
        stdout: stdout.text(),
        stderr: stderr.text(),
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

#[derive(Default)]
struct Output {
    bytes: Vec<u8>,
    truncated: bool,
}

impl Output {
    fn add(&mut self, bytes: &[u8]) {
        let room = OUTPUT_MAX - self.bytes.len();
        self.truncated |= bytes.len() > room;
        self.bytes.extend_from_slice(&bytes[..bytes.len().min(room)]);
    }

    /// The output as text, lossy if it is not UTF-8. Output that is UTF-8 is not held twice.
    fn text(self) -> String {
        String::from_utf8(self.bytes)
            .unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_is_bounded() {
        let mut output = Output::default();
        for _ in 0..3 {
            output.add(&vec![b'x'; OUTPUT_MAX / 2]);
        }
        assert_eq!(output.bytes.len(), OUTPUT_MAX);
        assert!(output.truncated);
    }

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
