//! Running programs, never without end.

use std::ffi::OsString;
use std::io::{BufRead, BufReader, IsTerminal};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};

/// The exit code of `timeout` when the time was up.
const TIMED_OUT: i32 = 124;

/// The top of the repository.
pub(crate) fn repository() -> PathBuf {
    let manifest = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    manifest.parent().map(Path::to_path_buf).unwrap_or(manifest)
}

/// A program under `timeout`, which also ends what it started (on a terminal only the program itself, so that Ctrl-C
/// reaches all of them).
pub(crate) fn program(name: &str, limit: Duration) -> Command {
    limited(name, limit, std::io::stderr().is_terminal())
}

fn limited(name: &str, limit: Duration, foreground: bool) -> Command {
    let mut command = Command::new("timeout");
    // Options end at the first word that is none: the time.
    if foreground {
        command.arg("--foreground");
    }
    command.args(["--kill-after=10", &limit.as_secs().max(1).to_string()]);
    command.arg(name).stdin(Stdio::null());
    command
}

fn shown(command: &Command) -> String {
    let skip = if command.get_args().any(|argument| argument == "--foreground") { 3 } else { 2 };
    let words = command.get_args().skip(skip).map(|word| word.to_string_lossy().into_owned());
    words.collect::<Vec<_>>().join(" ")
}

/// Runs it with its output on ours.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let what = shown(command);
    let status = command.status().with_context(|| format!("`{what}` could not be started"))?;
    match status.code() {
        Some(0) => Ok(()),
        Some(TIMED_OUT) => bail!("`{what}` took too long and was ended"),
        _ => bail!("`{what}` failed ({status})"),
    }
}

/// Runs it and returns its standard output.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let what = shown(command);
    let output = command.output().with_context(|| format!("`{what}` could not be started"))?;
    if !output.status.success() {
        bail!("`{what}` failed ({}): {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Whether it can be run and succeeds; it says nothing.
pub(crate) fn succeeds(command: &mut Command) -> bool {
    command.stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|status| status.success())
}

/// Runs it, passes its standard error on line by line, and gives each line to `see`; returns whether it succeeded.
pub(crate) fn watch(command: &mut Command, mut see: impl FnMut(&str)) -> Result<bool> {
    let what = shown(command);
    let mut child =
        command.stderr(Stdio::piped()).spawn().with_context(|| format!("`{what}` could not be started"))?;
    let stderr = child.stderr.take().context("standard error was asked for and is not there")?;
    for line in BufReader::new(stderr).split(b'\n') {
        let line = line.with_context(|| format!("reading what `{what}` says"))?;
        let line = String::from_utf8_lossy(&line);
        eprintln!("{line}");
        see(&line);
    }
    let status = child.wait().with_context(|| format!("waiting for `{what}`"))?;
    if status.code() == Some(TIMED_OUT) {
        bail!("`{what}` took too long and was ended");
    }
    Ok(status.success())
}

/// The cargo that runs us.
pub(crate) fn cargo(limit: Duration) -> Command {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo"));
    let mut command = program(&cargo.to_string_lossy(), limit);
    command.current_dir(repository());
    // What the cargo that runs us says about this crate. Build scripts that ask for it (that of ring does) would be run anew, and
    // all that stands on them compiled again, whenever one calls cargo with and without us in turn.
    for (name, _) in std::env::vars_os() {
        let ours = name.to_str().is_some_and(|name| {
            ["CARGO_PKG_", "CARGO_MANIFEST_"].iter().any(|start| name.starts_with(start))
        });
        if ours {
            command.env_remove(name);
        }
    }
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_run_with_and_without_a_terminal() {
        for foreground in [false, true] {
            let mut command = limited("echo", Duration::from_secs(10), foreground);
            command.arg("said");
            assert_eq!(shown(&command), "echo said");
            assert_eq!(output(&mut command).unwrap(), "said\n");
        }
    }
}
