//! Errors of the command line: what failed, why, and what to do; exit codes from the one table.

use std::io::Write as _;
use std::process::ExitCode;

use microvm_api::Problem;
use microvm_client::{ClientError, LOCAL_FILE};
use microvm_types::ErrorKind;

use crate::flags;
use crate::format::Format;
use crate::remedy;
use crate::variables::NotText;
use crate::visible;

/// Exit code of a program whose reader went away: 128 + SIGPIPE.
const READER_GONE: u8 = 141;

/// Exit code of a wrong command line, as usual.
const USAGE: u8 = 2;

/// Exit code of `run` and `exec` if something else than the command failed; a wrong command line too.
const OURS: u8 = 125;

/// Exit code of `run` and `exec` if the command was found and cannot be executed.
const NOT_EXECUTABLE: u8 = 126;

/// Exit code of `run` and `exec` if the command was not found.
pub(crate) const NO_PROGRAM: u8 = 127;

/// Reason for which a command did not succeed.
#[derive(Debug)]
pub(crate) enum CliError {
    /// Something to tell.
    Problem(Box<Problem>),
    /// The same of a verb whose exit codes are those of commands, with its exit code.
    Coded(Box<Problem>, u8),
    /// Nobody reads our standard output any more; there is nobody to tell.
    ReaderGone,
    /// A signal asked us to end.
    Interrupted(u8),
    /// The detach keys were pressed; the process runs on.
    Detached,
}

impl CliError {
    pub(crate) fn new(kind: ErrorKind, code: &str, detail: impl Into<String>) -> Self {
        Self::Problem(Box::new(Problem::new(kind, code, detail)))
    }

    pub(crate) fn invalid(code: &str, detail: impl Into<String>) -> Self {
        Self::new(ErrorKind::Invalid, code, detail)
    }

    /// True if the error is about this program and its files, not about the server or a VM.
    pub(crate) fn is_of_this_side(&self) -> bool {
        match self {
            Self::ReaderGone | Self::Interrupted(_) => true,
            Self::Detached => false,
            Self::Problem(problem) | Self::Coded(problem, _) => problem.code == LOCAL_FILE,
        }
    }

    /// With the exit codes of `run` and `exec`, which otherwise are those of commands: 125 for what is not the command's.
    pub(crate) fn beside_commands(self) -> Self {
        match self {
            Self::Problem(problem) => Self::Coded(problem, OURS),
            other => other,
        }
    }

    /// A command that could not be started, with the exit code that shells give it.
    pub(crate) fn not_started(error: ClientError) -> Self {
        match error {
            ClientError::Problem(problem) if problem.code == "guest_refused" => match problem.kind {
                ErrorKind::NotFound => Self::Coded(problem, NO_PROGRAM),
                ErrorKind::Forbidden | ErrorKind::Invalid => Self::Coded(problem, NOT_EXECUTABLE),
                _ => Self::Problem(problem),
            },
            other => other.into(),
        }
    }

    /// A file of this host could not be used.
    pub(crate) fn file(action: &str, path: impl std::fmt::Debug, error: &std::io::Error) -> Self {
        ClientError::file(action, path, error).into()
    }

    /// Standard output could not be written: usually its reader is gone, which is nothing to complain about.
    pub(crate) fn output(error: &std::io::Error) -> Self {
        if error.kind() == std::io::ErrorKind::BrokenPipe {
            Self::ReaderGone
        } else {
            Self::file("writing", "standard output", error)
        }
    }

    /// Description for people.
    pub(crate) fn detail(&self) -> String {
        match self {
            Self::Problem(problem) | Self::Coded(problem, _) => flags::named(problem),
            Self::ReaderGone => "nobody reads the output any more".to_owned(),
            Self::Interrupted(signal) => format!("interrupted by signal {signal}"),
            Self::Detached => "detached".to_owned(),
        }
    }

    /// The code this process ends with.
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Self::Problem(problem) => problem.kind.exit_code(),
            Self::Coded(_, code) => *code,
            Self::ReaderGone => READER_GONE,
            Self::Interrupted(signal) => 128 + signal,
            Self::Detached => 0,
        }
    }

    /// Tells it on standard error and gives the exit code.
    pub(crate) fn report(self, format: Format) -> ExitCode {
        self.tell(format);
        ExitCode::from(self.exit_code())
    }

    /// Tells it on standard error.
    pub(crate) fn tell(&self, format: Format) {
        if let Self::Problem(problem) | Self::Coded(problem, _) = self {
            let text = match format {
                Format::Json => {
                    visible::json(&serde_json::to_string(&problem).unwrap_or_else(|_| problem.detail.clone()))
                }
                Format::Table => {
                    let remedies = problem.remedies.iter().map(remedy::command);
                    let advice: String =
                        remedies.map(|line| format!("\n  → {}", visible::lines(&line))).collect();
                    format!("error: {}{advice}", visible::lines(&flags::named(problem)))
                }
            };
            // If standard error is closed the exit code still tells.
            let _ = writeln!(std::io::stderr(), "{text}");
        }
    }
}

/// Tells a wrong command line; help and version are not wrong.
pub(crate) fn usage(error: &clap::Error, verb: Option<&str>) -> ExitCode {
    // A closed output cannot be told anything.
    let _ = error.print();
    let code = if matches!(verb, Some("run" | "exec" | "shell" | "attach")) { OURS } else { USAGE };
    ExitCode::from(if error.use_stderr() { code } else { 0 })
}

impl From<NotText> for CliError {
    fn from(error: NotText) -> Self {
        Self::invalid("setting_invalid", error.to_string())
    }
}

impl From<ClientError> for CliError {
    fn from(error: ClientError) -> Self {
        match error {
            ClientError::Output(error) => Self::output(&error),
            other => {
                let mut problem = other.to_problem();
                if problem.code == "transfer_too_large" {
                    problem.detail.push_str(" (--max-bytes)");
                }
                Self::Problem(Box::new(problem))
            }
        }
    }
}

impl From<Problem> for CliError {
    fn from(problem: Problem) -> Self {
        Self::Problem(Box::new(problem))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_come_from_the_table() {
        let not_found = CliError::file("opening", "x", &std::io::Error::from(std::io::ErrorKind::NotFound));
        assert_eq!(not_found.exit_code(), ErrorKind::NotFound.exit_code());
        assert_eq!(CliError::Interrupted(2).exit_code(), 130);
    }
}
