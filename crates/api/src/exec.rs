//! Running commands: messages of the exec WebSocket, and the one-shot form.
//!
//! Text frames are JSON ([`ClientMessage`], [`ServerMessage`]); binary frames are one [`StreamByte`] and data.

use std::collections::BTreeMap;

use microvm_types::ProcessId;
use microvm_types::exec::{ExecRequest, ExitStatus, ProcessInfo, TerminalSize};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::milliseconds::Seconds;
use crate::output::Omitted;
use crate::problem::Problem;

pub use crate::command_line::{COMMAND_MAX, CommandLine};

/// Largest binary frame either side sends, in bytes, the stream byte included.
pub const FRAME_MAX: usize = 1 << 20;

/// First byte of a binary frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum StreamByte {
    /// Client to server: standard input.
    Stdin = 0,
    /// Server to client: standard output, or the terminal.
    Stdout = 1,
    /// Server to client: standard error.
    Stderr = 2,
}

/// Becomes the login shell of the user whom it runs as: the one that `/etc/passwd` names, else bash, else sh.
pub const LOGIN_SHELL: [&str; 3] = [
    "/bin/sh",
    "-c",
    r#"
user=$(id -u); shell=
while IFS=: read -r _ _ id _ _ _ path; do
  if [ "$id" = "$user" ]; then shell=$path; break; fi
done < /etc/passwd
case $shell in */nologin|*/false) shell= ;; esac
if [ ! -x "$shell" ]; then shell=$(command -v bash || command -v sh); fi
exec "$shell" -l
"#,
];

/// A message of the client on the exec WebSocket. The first frame is `start`, `attach` or `read`, and only
/// the first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ClientMessage {
    /// Run a command.
    Start(ExecRequest),
    /// Take up the output of a process again.
    Attach {
        /// Which process.
        process: ProcessId,
        /// From which byte of standard output; absent: the oldest still kept.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        stdout_offset: Option<u64>,
        /// From which byte of standard error; absent: the oldest still kept.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        stderr_offset: Option<u64>,
    },
    /// Look at the output that is kept of a process, beside whoever takes it; nobody is disturbed.
    Read {
        /// Which process.
        process: ProcessId,
        /// From which byte of standard output; absent: the oldest still kept.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        stdout_offset: Option<u64>,
        /// From which byte of standard error; absent: the oldest still kept.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        stderr_offset: Option<u64>,
        /// Follow the process to its end, with its later output.
        #[serde(default)]
        follow: bool,
    },
    /// No more standard input.
    StdinClosed,
    /// The terminal has a new size.
    Resize(TerminalSize),
    /// Send a signal to the process group.
    Signal {
        /// Its number, 1 to 64.
        signal: u8,
    },
}

/// A message of the server on the exec WebSocket. `exited`, `up_to_date` and `error` are the last.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ServerMessage {
    /// The process runs (or was found again).
    Started {
        /// Our id for it.
        process: ProcessId,
        /// Its number in the guest.
        pid: u32,
        /// Offset of the first byte of standard output that will come.
        stdout_offset: u64,
        /// Offset of the first byte of standard error that will come.
        stderr_offset: u64,
    },
    /// It ended; all of its output came before.
    Exited(ExitStatus),
    /// All that a `read` without `follow` asked for has come; the process lives on.
    UpToDate,
    /// It could not be started, or its guest was lost.
    Error {
        /// The failure.
        problem: Problem,
    },
}

/// A command to run to its end, its output collected (at most 10 MB of each stream).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Execute {
    /// The command.
    pub command: CommandLine,
    /// Seconds until it is killed: 1 to 3600, if the operator of the server did not set another limit.
    #[serde(default = "default_timeout")]
    pub timeout: u64,
    /// Working directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub working_dir: Option<String>,
    /// Variables set on top of the VM's environment.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// User name or id, optionally `user:group`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
}

const fn default_timeout() -> u64 {
    300
}

/// Result of a one-shot command.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Executed {
    /// True if it ended by itself with exit code 0.
    pub success: bool,
    /// Its exit code (32 bits on Windows); 128 + signal, or 124 after a time-out.
    pub exit_code: i64,
    /// Its standard output; bytes that are no UTF-8 are replaced, and `stdout_base64` has all as they are.
    pub stdout: String,
    /// Its standard error; bytes that are no UTF-8 are replaced, and `stderr_base64` has all as they are.
    pub stderr: String,
    /// Standard output in base64 (RFC 4648, section 4), only where it is no UTF-8.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stdout_base64: Option<String>,
    /// Standard error in base64, only where it is no UTF-8.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stderr_base64: Option<String>,
    /// True if some output was left out because there was too much of it; `omitted` says how much.
    pub truncated: bool,
    /// Output that was left out; absent: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub omitted: Option<Omitted>,
    /// The process: the last MiB of each of its outputs can be read under this id for some minutes.
    pub process: ProcessId,
    /// Duration in milliseconds.
    pub execution_time_ms: u64,
    /// The same in seconds, to the millisecond.
    #[serde(default)]
    pub duration_seconds: Seconds,
    /// Why it did not end well, in words.
    pub error: Option<String>,
    /// When it ended (RFC 3339 with offset).
    pub timestamp: String,
}

/// Processes started through the agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ProcessList {
    /// The processes.
    pub processes: Vec<ProcessInfo>,
}

/// A signal for a process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SendSignal {
    /// Its number, 1 to 64.
    pub signal: u8,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_read_as_documented() {
        let start: ClientMessage =
            serde_json::from_str(r#"{"type":"start","command":["true"],"stdin":true}"#).unwrap();
        assert!(matches!(start, ClientMessage::Start(ref request) if request.stdin));
        assert!(serde_json::from_str::<ClientMessage>(r#"{"type":"start","comand":["true"]}"#).is_err());
        let resize: ClientMessage =
            serde_json::from_str(r#"{"type":"resize","columns":1,"rows":2}"#).unwrap();
        assert_eq!(resize, ClientMessage::Resize(TerminalSize { columns: 1, rows: 2 }));
        let exited = ServerMessage::Exited(ExitStatus { code: Some(3), signal: None, timed_out: false });
        let json = serde_json::to_value(&exited).unwrap();
        assert_eq!((json["type"].as_str(), json["code"].as_u64()), (Some("exited"), Some(3)));
        let shell: Execute = serde_json::from_str(r#"{"command":"ls | wc"}"#).unwrap();
        assert_eq!((shell.command, shell.timeout), (CommandLine::Shell("ls | wc".into()), 300));
    }
}
