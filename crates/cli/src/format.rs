//! The form of data and of help texts.

use clap::ValueEnum;

/// `{n}` in a help text. clap prints a line break for these three characters, so one that prints nothing (the end of all
/// colours) stands between them; it is taken out where the output is not a terminal.
macro_rules! number {
    () => {
        "{\u{1b}[0mn}"
    };
}
pub(crate) use number;

/// Format of printed data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub(crate) enum Format {
    /// For people.
    #[default]
    Table,
    /// For programs.
    Json,
}
