//! Long work as a stream of lines: newline-delimited JSON, one [`ProgressLine`] each.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::image::Image;
use crate::kernel::Kernel;
use crate::problem::Problem;
use crate::snapshot::Snapshot;

/// One line. All but `progress` are the last.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ProgressLine {
    /// Where the work is.
    Progress {
        /// Current step, in a few words.
        step: String,
        /// Units done so far.
        done: u64,
        /// Units in all, if known.
        total: Option<u64>,
    },
    /// An image is ready.
    Image {
        /// The image.
        image: Image,
    },
    /// A kernel is ready.
    Kernel {
        /// The kernel.
        kernel: Kernel,
    },
    /// A snapshot is ready.
    Snapshot {
        /// The snapshot.
        snapshot: Snapshot,
    },
    /// A snapshot was written to a file.
    Exported {
        /// The file on the server's host.
        path: String,
        /// Its size in bytes.
        bytes: u64,
    },
    /// Everything was verified.
    Damage {
        /// Findings; empty if there are none.
        findings: Vec<String>,
    },
    /// It failed; nothing was left behind.
    Failed {
        /// The failure.
        problem: Problem,
    },
}
