//! The user's terminal.

use std::io::IsTerminal as _;

use microvm_types::exec::TerminalSize;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};

use crate::error::CliError;

/// Size of the terminal, if there is one; the usual size of one that does not know its own, as `script` and `expect` make them.
pub(crate) fn size() -> Option<TerminalSize> {
    // One of the two may be redirected.
    let size = tcgetwinsize(std::io::stdin()).or_else(|_| tcgetwinsize(std::io::stdout())).ok()?;
    let known = size.ws_col > 0 && size.ws_row > 0;
    Some(if known {
        TerminalSize { columns: size.ws_col, rows: size.ws_row }
    } else {
        TerminalSize::default()
    })
}

/// The terminal in raw mode: every key goes to the guest, Ctrl-C too. Dropping it restores the terminal.
pub(crate) struct RawTerminal {
    before: Termios,
}

impl RawTerminal {
    /// Takes the terminal over.
    pub(crate) fn enter() -> Result<Self, CliError> {
        if !std::io::stdin().is_terminal() {
            let detail = "standard input is not a terminal: leave out -t, or call this from a terminal";
            return Err(CliError::invalid("no_terminal", detail));
        }
        let failed = |error: rustix::io::Errno| CliError::file("setting", "the terminal", &error.into());
        let before = tcgetattr(std::io::stdin()).map_err(failed)?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(std::io::stdin(), OptionalActions::Flush, &raw).map_err(failed)?;
        Ok(Self { before })
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        // A terminal that went away needs no restoring.
        let _ = tcsetattr(std::io::stdin(), OptionalActions::Drain, &self.before);
    }
}
