//! Notices to people, on standard error.

use std::io::{IsTerminal as _, Write as _};

/// Something to know, on standard error.
pub(crate) fn say(text: &str) {
    // A closed standard error cannot be told anything.
    let _ = writeln!(std::io::stderr(), "microvm: {}", crate::visible::lines(text));
}

/// True if standard error is a terminal, so that people read it.
pub(crate) fn people_read() -> bool {
    std::io::stderr().is_terminal()
}
