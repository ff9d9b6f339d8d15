//! What kind of machine this is.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::run;
pub(crate) use crate::run::repository;

/// Where builds go.
pub(crate) fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| repository().join("target"), PathBuf::from)
}

/// Whether we are root.
pub(crate) fn is_root() -> bool {
    run::output(run::program("id", Duration::from_secs(10)).arg("-u")).is_ok_and(|id| id.trim() == "0")
}

/// Where `microvm` keeps its files; decided as `microvm` itself does.
pub(crate) fn data_root() -> Result<PathBuf> {
    if let Some(root) = std::env::var_os("MICROVM_ROOT") {
        return Ok(PathBuf::from(root));
    }
    if is_root() {
        return Ok(PathBuf::from("/var/lib/microvm"));
    }
    if let Some(data) = std::env::var_os("XDG_DATA_HOME") {
        return Ok(PathBuf::from(data).join("microvm"));
    }
    let home = std::env::var_os("HOME").context("HOME is not set")?;
    Ok(PathBuf::from(home).join(".local/share/microvm"))
}

/// Refuses machines that this cannot work on, saying why.
pub(crate) fn check() -> Result<()> {
    if std::env::consts::ARCH != "x86_64" {
        bail!("this is {}: only x86_64 is supported so far", std::env::consts::ARCH);
    }
    let release = std::fs::read_to_string("/etc/os-release").context("reading /etc/os-release")?;
    let debian = release.lines().any(|line| {
        let value = line.strip_prefix("ID=").or_else(|| line.strip_prefix("ID_LIKE="));
        value.is_some_and(|value| value.trim_matches('"').split(' ').any(|word| word == "debian"))
    });
    if !debian {
        bail!(
            "this is not Debian or made from it: install QEMU and the tools README names yourself, then build"
        );
    }
    Ok(())
}
