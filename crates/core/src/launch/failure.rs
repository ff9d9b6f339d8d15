//! The error of a machine that did not come up, with the end of its console.

use camino::Utf8Path;
use microvm_ports::Hypervisor;
use microvm_types::ErrorKind;

use crate::error::ServiceError;

/// Bytes of console shown with a failed boot.
const CONSOLE_TAIL: usize = 2_000;

pub(super) async fn boot_error(
    hypervisor: &dyn Hypervisor,
    directory: &Utf8Path,
    kind: ErrorKind,
    reason: String,
) -> ServiceError {
    // The console is all that a guest without an agent can tell about its boot.
    let console = match hypervisor.console(directory, None, CONSOLE_TAIL).await {
        Ok(console) => clean(&console.bytes),
        Err(error) => format!("(the console cannot be read: {error})"),
    };
    ServiceError::Boot { kind, reason, console }
}

/// Console bytes as text a terminal can show safely.
fn clean(console: &[u8]) -> String {
    let text: String = String::from_utf8_lossy(console)
        .chars()
        .filter(|c| *c == '\n' || *c == '\t' || !c.is_control())
        .collect();
    text.trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_console_cannot_play_with_the_terminal() {
        assert_eq!(clean(b"\x1b[2Jhello\r\n\x07world\n"), "[2Jhello\nworld");
    }
}
