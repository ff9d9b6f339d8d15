//! `microvm completions`: for shells.

use clap::{Args, CommandFactory as _};
use clap_complete::Shell;

use crate::arguments::{Arguments, Format};
use crate::error::CliError;
use crate::output::Output;

/// Print completions for a shell
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  microvm completions bash > ~/.local/share/bash-completion/completions/microvm"
)]
pub(crate) struct Completions {
    /// The shell
    shell: Shell,
}

impl Completions {
    pub(crate) fn run(self) -> Result<u8, CliError> {
        let mut text = Vec::new();
        clap_complete::generate(self.shell, &mut Arguments::command(), "microvm", &mut text);
        Output::new(Format::Table).bytes(&text)?;
        Ok(0)
    }
}
