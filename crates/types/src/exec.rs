//! Commands run in a guest: what is asked, what comes back.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::id::ProcessId;

/// Size of a terminal in character cells.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct TerminalSize {
    /// Columns, 1 to 65,535.
    pub columns: u16,
    /// Rows, 1 to 65,535.
    pub rows: u16,
}

impl Default for TerminalSize {
    /// 80 × 24, the size of the terminals of old.
    fn default() -> Self {
        Self { columns: 80, rows: 24 }
    }
}

/// What to run in a guest and how.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ExecRequest {
    /// Program and arguments; the program is looked up in the guest's `PATH`. At least one entry. No shell is
    /// involved: for pipes and variables run `sh -c '…'`.
    pub command: Vec<String>,
    /// Variables set on top of the VM's environment.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub environment: BTreeMap<String, String>,
    /// Working directory in the guest; absolute, or relative to the user's home. Default: the image's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub working_directory: Option<String>,
    /// User name or numeric id, optionally `user:group`. Default: the image's, else root.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Run on a pseudo-terminal of this size; standard error is then merged into standard output.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub terminal: Option<TerminalSize>,
    /// Whether the caller will send standard input. Otherwise the command reads end-of-file at once.
    #[serde(default)]
    pub stdin: bool,
    /// Kill the command and everything it started after so many milliseconds. `None`: never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
    /// Let the command live on without a reader: its oldest output is dropped when nobody takes it, instead of the
    /// command being held up.
    #[serde(default)]
    pub detach: bool,
    /// Forget the command when it has ended: for what the service runs by itself, which no user looks for. Not settable
    /// from outside.
    #[serde(skip)]
    pub unlisted: bool,
}

/// End of a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ExitStatus {
    /// Exit code, if the command ended by itself: 0 to 255 on Linux, 32 bits on Windows.
    pub code: Option<u32>,
    /// Number of the signal that ended it, if one did (1 to 64).
    pub signal: Option<u8>,
    /// Whether it was killed because its time was up.
    #[serde(default)]
    pub timed_out: bool,
}

impl ExitStatus {
    /// Exit code of 8 bits, as a shell shows it: the low byte of the code, 128 + signal, or 124 after a time-out. A code
    /// that is not 0 but has a low byte of 0 is 255: a failure never looks like a success.
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "only the low byte is taken")]
    pub const fn shell_code(&self) -> u8 {
        match (self.timed_out, self.code, self.signal) {
            (true, _, _) => 124,
            (false, Some(code @ 0..=255), _) => code as u8,
            (false, Some(code), _) if code & 0xff == 0 => 255,
            (false, Some(code), _) => (code & 0xff) as u8,
            (false, None, Some(signal)) => 128u8.wrapping_add(signal),
            (false, None, None) => 255,
        }
    }

    /// The whole exit code, if the command ended by itself and in time; else [`Self::shell_code`].
    #[must_use]
    pub const fn whole_code(&self) -> u32 {
        match (self.timed_out, self.code) {
            (false, Some(code)) => code,
            _ => self.shell_code() as u32,
        }
    }
}

/// A process that was started through the agent and is still known to it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ProcessInfo {
    /// Our id, for re-attaching.
    pub id: ProcessId,
    /// Process number in the guest.
    pub pid: u32,
    /// Program and arguments; of a long command the first part.
    pub command: Vec<String>,
    /// Bytes of the command that are left out; absent: none.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub command_omitted: u64,
    /// Milliseconds since it was started.
    pub age_ms: u64,
    /// How it ended, if it has. Ended processes are remembered for a while so that their output can be fetched.
    pub exit: Option<ExitStatus>,
    /// Bytes of standard output (or terminal output) produced so far.
    pub stdout_bytes: u64,
    /// Bytes of standard error produced so far.
    pub stderr_bytes: u64,
    /// Whether it was started to live on without a reader. While one of these runs its VM is not ended for being idle.
    #[serde(default)]
    pub detached: bool,
    /// True if it has a terminal; false also from agents that do not tell.
    #[serde(default)]
    pub terminal: bool,
    /// True if it was started with a standard input that can be written; false also from agents that do not tell.
    #[serde(default)]
    pub stdin: bool,
}

const fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// From which byte of each output to go on when re-attaching. `None`: from the oldest byte still kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct OutputOffsets {
    /// Offset in standard output.
    pub stdout: Option<u64>,
    /// Offset in standard error.
    pub stderr: Option<u64>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_are_what_a_shell_shows() {
        let status = |code, signal, timed_out| ExitStatus { code, signal, timed_out }.shell_code();
        assert_eq!(status(Some(3), None, false), 3);
        assert_eq!(status(None, Some(9), false), 137);
        assert_eq!(status(None, Some(9), true), 124);
        assert_eq!(status(Some(0xc000_0005), None, false), 5);
        assert_eq!(status(Some(0x100), None, false), 255, "a failure looked like a success");
        let whole = ExitStatus { code: Some(0xc000_0005), signal: None, timed_out: false };
        assert_eq!(
            (whole.whole_code(), ExitStatus { timed_out: true, ..whole }.whole_code()),
            (0xc000_0005, 124)
        );
        let json = serde_json::to_string(&whole).unwrap();
        assert_eq!(serde_json::from_str::<ExitStatus>(&json).unwrap(), whole);
    }
}
