//! Names and labels by which the VMs, pools and snapshots of this run are found again.

use std::collections::BTreeMap;

use microvm_types::Name;

use crate::error::{BenchError, failed};

/// Label of every VM of a bench; its value is the process number.
const LABEL: &str = "bench";

/// Labels of the VMs of this run; children of a fork inherit them.
pub(crate) fn labels() -> BTreeMap<String, String> {
    [(LABEL.to_owned(), std::process::id().to_string())].into()
}

/// Name of the pool of this run.
pub(crate) fn pool() -> Result<Name, BenchError> {
    let name = format!("bench-{}", std::process::id()).parse();
    name.map_err(|error: microvm_types::NameError| failed("naming a pool", &error))
}

/// Beginning of the names of the snapshots of this run.
pub(crate) fn snapshots() -> String {
    format!("bench-{}-", std::process::id())
}
