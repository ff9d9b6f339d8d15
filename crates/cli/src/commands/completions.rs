//! `microvm completions`: completions for shells.

use clap::Args;
use clap_complete::Shell;

use crate::error::CliError;
use crate::format::Format;
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
    pub(crate) fn run(self, mut program: clap::Command) -> Result<u8, CliError> {
        let mut text = Vec::new();
        clap_complete::generate(self.shell, &mut program, "microvm", &mut text);
        Output::new(Format::Table).bytes(&text)?;
        Ok(0)
    }
}
