//! No source file grows without end.

use anyhow::{Context, Result, bail};

use crate::architecture::Sections;
use crate::{host, words};

/// Lines at which a Rust file is too long.
const LIMIT: usize = 640;

/// Checks every Rust file. An exception names the lines a file has now; it may only be lowered, and goes when the file
/// is short enough.
pub(crate) fn check(architecture: &Sections) -> Result<()> {
    let exceptions = architecture.get("sizes").cloned().unwrap_or_default();
    let mut wrong = Vec::new();
    for path in words::committed()? {
        if !path.ends_with(".rs") {
            continue;
        }
        let Ok(text) = std::fs::read_to_string(host::repository().join(&path)) else { continue };
        let lines = text.lines().count();
        let exception =
            exceptions.get(&path).map(|value| value.as_u64().context("an exception must be a number"));
        let exception = exception.transpose()?.map(|lines| usize::try_from(lines).unwrap_or(usize::MAX));
        match exception {
            Some(allowed) if lines > allowed => {
                wrong.push(format!("{path}: {lines} lines, its exception says {allowed}"))
            }
            Some(_) if lines <= LIMIT => {
                wrong.push(format!("{path}: {lines} lines, its exception is not needed any more"))
            }
            Some(allowed) if lines < allowed => {
                wrong.push(format!("{path}: {lines} lines, lower its exception to that"))
            }
            None if lines > LIMIT => {
                wrong.push(format!("{path}: {lines} lines, at most {LIMIT} are allowed"))
            }
            _ => {}
        }
    }
    if wrong.is_empty() { Ok(()) } else { bail!("file sizes:\n  {}", wrong.join("\n  ")) }
}
