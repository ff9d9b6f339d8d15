//! Messages between server and supervisor: one JSON document per line over a socket pair.

use serde::{Deserialize, Serialize};

use crate::process::record::ProcessRecord;

/// The server's last word before the VMM starts.
pub(crate) const GO: &[u8] = b"go\n";

/// The supervisor's messages.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Report {
    /// Everything is prepared, `process.json` is written; waiting for "go".
    Ready(ProcessRecord),
    /// The VMM runs.
    Started,
    /// A step failed; nothing is left running.
    Failed {
        /// The step that failed.
        step: String,
        /// Error of the system.
        detail: String,
    },
}
