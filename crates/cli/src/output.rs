//! Printing data.

use std::io::{IsTerminal as _, Write as _, stdout};

use comfy_table::{Table, presets};
use microvm_types::Unreadable;
use serde::Serialize;

use crate::error::CliError;
use crate::format::Format;
use crate::notice::say;
use crate::visible;

/// Printer of data to standard output, in one format.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Output {
    pub(crate) format: Format,
}

impl Output {
    pub(crate) const fn new(format: Format) -> Self {
        Self { format }
    }

    pub(crate) fn is_json(self) -> bool {
        self.format == Format::Json
    }

    /// Bytes as they are.
    pub(crate) fn bytes(self, bytes: &[u8]) -> Result<(), CliError> {
        let mut out = stdout().lock();
        // What has no line end yet is shown as well.
        out.write_all(bytes).and_then(|()| out.flush()).map_err(|error| CliError::output(&error))
    }

    /// Lines of text.
    pub(crate) fn line(self, text: &str) -> Result<(), CliError> {
        self.bytes(format!("{}\n", visible::lines(text)).as_bytes())
    }

    /// Bytes of a guest: as they are for a program, made visible on a terminal.
    pub(crate) fn guest_bytes(self, bytes: &[u8]) -> Result<(), CliError> {
        if stdout().is_terminal() {
            return self.bytes(visible::bytes(bytes).as_bytes());
        }
        self.bytes(bytes)
    }

    /// A value as indented JSON.
    pub(crate) fn json(self, value: &impl Serialize) -> Result<(), CliError> {
        let text = serde_json::to_string_pretty(value).map_err(|error| {
            CliError::new(microvm_types::ErrorKind::Internal, "output_failed", error.to_string())
        })?;
        self.bytes(format!("{}\n", visible::json(&text)).as_bytes())
    }

    /// A value as JSON on one line.
    pub(crate) fn json_line(self, value: &impl Serialize) -> Result<(), CliError> {
        let text = serde_json::to_string(value).map_err(|error| {
            CliError::new(microvm_types::ErrorKind::Internal, "output_failed", error.to_string())
        })?;
        self.bytes(format!("{}\n", visible::json(&text)).as_bytes())
    }

    /// Names and values, one pair a line.
    pub(crate) fn pairs(self, pairs: &[(&str, String)]) -> Result<(), CliError> {
        let width = pairs.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
        let line = |(name, value): &(&str, String)| format!("{name:width$}  {}", visible::line(value));
        self.line(&pairs.iter().map(line).collect::<Vec<_>>().join("\n"))
    }

    /// `value` in JSON, or the table.
    pub(crate) fn table(
        self,
        value: &impl Serialize,
        header: &[&str],
        rows: impl IntoIterator<Item = Vec<String>>,
    ) -> Result<(), CliError> {
        if self.is_json() {
            return self.json(value);
        }
        let mut table = Table::new();
        table.load_style(presets::NOTHING).set_header(header.to_vec());
        for row in rows {
            table.add_row(row.iter().map(|cell| visible::line(cell)));
        }
        for column in table.column_iter_mut() {
            column.set_padding((0, 2));
        }
        // The last column is padded like the others: nobody wants spaces at the end of what is copied.
        let lines: Vec<String> = table.lines().map(|line| line.trim_end().to_owned()).collect();
        self.line(&lines.join("\n"))
    }

    /// `value` in JSON, or one line.
    pub(crate) fn value(self, value: &impl Serialize, text: &str) -> Result<(), CliError> {
        if self.is_json() { self.json(value) } else { self.line(text) }
    }
}

/// Exit code when something that was looked at is not in order, or a list is not whole.
pub(crate) const FAULTY: u8 = 1;

/// Names on standard error what a list could not show, and gives the exit code of the list.
pub(crate) fn whole(kind: &str, unreadable: &[Unreadable]) -> u8 {
    for one in unreadable {
        say(&format!("{kind} {} cannot be read and is not shown: {}", one.name, one.reason));
    }
    if unreadable.is_empty() { 0 } else { FAULTY }
}

/// Age of an RFC 3339 instant, for people.
pub(crate) fn age(instant: &str) -> String {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let then = microvm_api::time::parse(instant).unwrap_or_default();
    let seconds = now.as_secs().saturating_sub(then.unsigned_abs() / 1000);
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m", seconds / 60),
        3600..86_400 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}
