//! Archives that commands write: into a file, or to standard output.

use std::fs::{File, OpenOptions};
use std::io::{self, IsTerminal as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;

use camino::{Utf8Path, Utf8PathBuf};
use clap::Args;
use microvm_client::Download;
use microvm_types::ByteSize;
use serde::Serialize;

use crate::context::Context;
use crate::error::CliError;
use crate::format::Format;
use crate::notice::say;
use crate::progress::Display;

/// Place for an archive.
#[derive(Debug, Args)]
pub(crate) struct Target {
    /// File to write, `-` for standard output [default: standard output, unless it is a terminal]
    #[arg(short = 'o', long = "file", value_name = "FILE")]
    file: Option<Utf8PathBuf>,
    /// Format of printed data
    // As everywhere, without its short form, which is that of the file here. It is read where it always is.
    #[arg(long, value_enum, default_value_t, value_name = "FORMAT")]
    #[allow(dead_code, reason = "clap gives its value to the option of all commands")]
    output: Format,
}

/// An archive that was written to a file.
#[derive(Serialize)]
struct Written<'a> {
    file: &'a Utf8Path,
    bytes: u64,
}

impl Target {
    /// The file; `None`: standard output.
    fn file(&self) -> Option<&Utf8Path> {
        self.file.as_deref().filter(|file| *file != "-")
    }

    /// Refuses a target that takes no archive, before anything is asked for.
    pub(crate) fn check(&self) -> Result<(), CliError> {
        match self.file() {
            None if io::stdout().is_terminal() => Err(CliError::invalid(
                "no_file",
                "an archive cannot be printed on a terminal: name a file with -o, or pipe it into a program",
            )),
            Some(file) if file.is_dir() => {
                Err(CliError::invalid("no_file", format!("{file} is a directory: name a file in it")))
            }
            _ => Ok(()),
        }
    }

    /// Takes an archive to its end, which was verified then, and tells what was written to a file.
    pub(crate) async fn take(&self, context: &Context, archive: &mut Download) -> Result<(), CliError> {
        let Some(file) = self.file() else {
            receive(archive, |bytes| context.output.bytes(bytes)).await?;
            return Ok(());
        };
        let bytes = to_file(archive, file).await?;
        if context.output.is_json() {
            return context.output.json(&Written { file, bytes });
        }
        say(&format!("{file}: {}", ByteSize(bytes)));
        Ok(())
    }
}

/// Returns the bytes.
async fn receive(
    archive: &mut Download,
    mut write: impl FnMut(&[u8]) -> Result<(), CliError>,
) -> Result<u64, CliError> {
    let mut display = Display::new();
    let mut bytes = 0;
    while let Some(part) = archive.next().await? {
        write(&part)?;
        bytes += part.len() as u64;
        display.show("writing the archive", bytes, None);
    }
    Ok(bytes)
}

/// Writes a file beside the target, which takes its place when it is complete; straight into a device or a FIFO.
async fn to_file(archive: &mut Download, target: &Utf8Path) -> Result<u64, CliError> {
    let failed = |error: io::Error| CliError::file("writing", target, &error);
    let found = target.metadata().ok();
    if found.as_ref().is_some_and(|metadata| !metadata.is_file()) {
        let mut file = File::options().write(true).open(target).map_err(failed)?;
        return receive(archive, |bytes| file.write_all(bytes).map_err(failed)).await;
    }
    if found.is_none() && target.is_symlink() {
        let why = format!("{target} is a link to a file that is not there: name that file");
        return Err(CliError::invalid("no_file", why));
    }
    // What a link leads to is replaced, and not the link.
    let target =
        if found.is_some() { target.canonicalize_utf8().map_err(failed)? } else { target.to_owned() };
    let unfinished = Unfinished(format!("{target}.{}.part", std::process::id()).into());
    let mut options = OpenOptions::new();
    // For its owner alone, unless others may read what is replaced: an image may hold what is private.
    let mut file = options.write(true).create_new(true).mode(0o600).open(&unfinished.0).map_err(failed)?;
    let bytes = receive(archive, |bytes| file.write_all(bytes).map_err(failed)).await?;
    if let Some(replaced) = found {
        file.set_permissions(replaced.permissions()).map_err(failed)?;
    }
    file.sync_all().map_err(failed)?;
    std::fs::rename(&unfinished.0, &target).map_err(failed)?;
    Ok(bytes)
}

/// A file that is removed unless it was renamed.
struct Unfinished(Utf8PathBuf);

impl Drop for Unfinished {
    fn drop(&mut self) {
        // Once renamed, it is not there any more.
        let _ = std::fs::remove_file(&self.0);
    }
}
