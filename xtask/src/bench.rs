//! Measures the release build.

use std::time::Duration;

use anyhow::Result;

use crate::packages::Consent;
use crate::{microvm, quickstart, run};

/// Runs `microvm bench` with the given arguments.
pub(crate) fn bench(arguments: &[&str], consent: Consent) -> Result<()> {
    quickstart::prepare(consent)?;
    let mut command = microvm::call(Duration::from_secs(60 * 60), &["bench"]);
    run::run(command.args(arguments))
}
