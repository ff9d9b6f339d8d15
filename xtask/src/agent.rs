//! Builds the guest agent.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, bail};

use crate::{host, run};

/// The host's own target: with it, cargo keeps RUSTFLAGS away from build scripts and macros.
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// Builds the agent as a static program and returns its path. It has a target directory of its own, so that its flags do
/// not make cargo build everything else again.
pub(crate) fn build() -> Result<PathBuf> {
    let directory = host::target().join("agent");
    let mut cargo = run::cargo(Duration::from_secs(20 * 60));
    cargo
        .args(["build", "--locked", "--profile", "agent", "--package", "microvm-agent", "--target", TARGET])
        .env("CARGO_TARGET_DIR", &directory)
        .env("RUSTFLAGS", "-C target-feature=+crt-static")
        .env_remove("CARGO_ENCODED_RUSTFLAGS");
    run::run(&mut cargo)?;
    let path = directory.join(TARGET).join("agent/microvm-agent");
    let header = run::output(run::program("readelf", Duration::from_secs(20)).arg("-lW").arg(&path))?;
    if header.contains("INTERP") {
        bail!("{} is not static: it could not be process 1 of any image", path.display());
    }
    Ok(path)
}
