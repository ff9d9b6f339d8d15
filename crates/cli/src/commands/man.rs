//! `microvm man`: manual pages, made from the same description of the commands as `--help`.

use camino::Utf8PathBuf;
use clap::Args;

use crate::error::CliError;
use crate::format::Format;
use crate::output::Output;

/// Write a manual page for every command into a folder
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  microvm man /usr/local/share/man/man1")]
pub(crate) struct Man {
    /// Folder for the pages; created if absent
    directory: Utf8PathBuf,
}

impl Man {
    pub(crate) fn run(self, program: clap::Command) -> Result<u8, CliError> {
        let failed = |error: std::io::Error| {
            CliError::file("writing manual pages to", self.directory.as_str(), &error)
        };
        std::fs::create_dir_all(&self.directory).map_err(failed)?;
        clap_mangen::generate_to(program, &self.directory).map_err(failed)?;
        Output::new(Format::Table).line(&format!("{}/microvm.1", self.directory))?;
        Ok(0)
    }
}
