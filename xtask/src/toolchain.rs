//! One compiler for everyone, by its number.

use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::{architecture, run};

/// Holds the number in `rust-toolchain.toml` against the compiler that runs. They differ where a variable of the environment
/// names another toolchain.
pub(crate) fn check() -> Result<()> {
    let rules = architecture::read_file("rust-toolchain.toml")?;
    let channel = rules.get("toolchain").and_then(|section| section.get("channel"));
    let pinned =
        channel.and_then(serde_json::Value::as_str).context("rust-toolchain.toml names no channel")?;
    if !pinned.starts_with(|first: char| first.is_ascii_digit()) {
        bail!("rust-toolchain.toml names `{pinned}`, which means another compiler every six weeks");
    }
    let told = run::output(run::program("rustc", Duration::from_secs(60)).arg("--version"))?;
    if told.split(' ').nth(1) != Some(pinned) {
        bail!("rust-toolchain.toml names {pinned}, and this is {}", told.trim());
    }
    Ok(())
}
