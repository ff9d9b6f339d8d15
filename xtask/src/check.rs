//! What must hold of the source before anything is run.

use std::time::Duration;

use anyhow::{Result, bail};

use crate::steps::step;
use crate::{architecture, arrows, circles, commits, dependencies, rows, run, sizes, toolchain, words};

/// Runs all checks, goes on after a failed one, and fails if any did.
pub(crate) fn check() -> Result<()> {
    let architecture = architecture::read()?;
    let outcomes = [
        step("format", || run::run(run::cargo(Duration::from_secs(120)).args(["fmt", "--all", "--check"]))),
        step("crate arrows", || arrows::check(&architecture)),
        step("circles of modules", || circles::check(&architecture)),
        step("file sizes", || sizes::check(&architecture)),
        step("forbidden words", words::check),
        step("tests of feature rows", rows::check),
        step("toolchain", toolchain::check),
        step("dependencies", dependencies::check),
        step("messages of commits", commits::check),
        step("clippy", || {
            let mut cargo = run::cargo(Duration::from_secs(30 * 60));
            run::run(cargo.args([
                "clippy",
                "--locked",
                "--workspace",
                "--all-targets",
                "--",
                "-D",
                "warnings",
            ]))
        }),
        // After clippy: both read the same compiled dependencies.
        step("documentation", || {
            let mut cargo = run::cargo(Duration::from_secs(15 * 60));
            cargo.env("RUSTDOCFLAGS", "-D rustdoc::all -A rustdoc::private-doc-tests");
            run::run(cargo.args([
                "doc",
                "-q",
                "--locked",
                "--workspace",
                "--no-deps",
                "--keep-going",
                "--document-private-items",
            ]))
        }),
    ];
    let failures: Vec<String> =
        outcomes.into_iter().filter_map(Result::err).map(|error| format!("{error:#}")).collect();
    if failures.is_empty() {
        Ok(())
    } else {
        bail!("{} checks failed:\n{}", failures.len(), failures.join("\n"))
    }
}
