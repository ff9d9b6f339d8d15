//! `microvm cp`: files and directories into and out of a VM.

use std::ffi::OsString;

use clap::{Args, ValueEnum};
use microvm_client::copy::{self, Budget, Rules};
use microvm_types::ByteSize;
use microvm_types::files::FileOwner;

use crate::context::Context;
use crate::error::CliError;
use crate::interrupts::Interrupts;
use crate::left_out;
use crate::place::Place;

/// Handling of symbolic links that point outside of the copied directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
enum OutsideLinks {
    /// They stay the links they are; nothing is read or written through them
    #[default]
    Keep,
    /// They are left out
    Skip,
}

impl From<OutsideLinks> for copy::OutsideLinks {
    fn from(links: OutsideLinks) -> Self {
        match links {
            OutsideLinks::Keep => Self::Keep,
            OutsideLinks::Skip => Self::Skip,
        }
    }
}

/// Copy files and directories into and out of a VM
#[derive(Debug, Args)]
#[command(after_help = "\
One of SOURCE and TARGET is VM:PATH with an absolute path. Directories are copied recursively. If TARGET is an
existing directory, the copy goes into it. `-` is a tar stream on standard input or output.
Write ./NAME for a local file whose name has a colon.

FIFOs are copied, devices only into a VM, sockets never. Nothing is written through a symbolic link that lies in TARGET.

Exit code: 0 if everything was copied; 1 if files were left out (listed on standard error, `left_out` in JSON);
100 and up if the copy failed.

Examples:
  microvm cp ./src dev:/root/src
  microvm cp --chown www-data ./site dev:/var/www
  microvm cp dev:/root/out ./out
  microvm cp dev:/etc - | tar t")]
pub(crate) struct Cp {
    /// File or directory to copy
    source: OsString,
    /// Destination
    target: OsString,
    /// Limit of bytes that a copy out of the VM may write; holes do not count [default: twice the disk of the VM;
    /// unlimited to standard output]
    #[arg(long, value_name = "SIZE")]
    max_bytes: Option<ByteSize>,
    /// Handling of symbolic links that point outside of the copied directory, when copying out of a VM
    #[arg(long, value_enum, default_value_t, value_name = "WHAT")]
    links: OutsideLinks,
    /// Owner of files that are copied into a VM, by names or numbers of the VM [default: the user that commands run as;
    /// for a tar stream the owners that it names]
    #[arg(long, value_name = "USER[:GROUP]", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    chown: Option<String>,
}

impl Cp {
    pub(crate) async fn run(self, context: &Context) -> Result<u8, CliError> {
        let (source, target) = (Place::parse(&self.source), Place::parse(&self.target));
        let client = &context.client;
        let chown = self.chown.map(FileOwner::Named);
        let mut interrupts = Interrupts::new()?;
        let work = async {
            match (source, target) {
                (Place::Local(from), Place::Guest { vm, path }) => {
                    let owner = chown.as_ref().unwrap_or(&FileOwner::Default);
                    // Only the guest's system tells if `C:/x` or `/x` is a whole path.
                    let style = client.vm(&vm).await?.path_style;
                    Ok(copy::push(client, &vm, &from, &style.absolute(&path), style, owner).await?)
                }
                (Place::Guest { .. }, _) if chown.is_some() => Err(CliError::invalid(
                    "copy_invalid",
                    "--chown works for copies into a VM only: files copied out belong to the user who runs this command",
                )),
                (Place::Guest { vm, path }, Place::Local(to)) => {
                    let shown = client.vm(&vm).await?;
                    let (style, budget) = (shown.path_style, Budget::chosen(self.max_bytes, shown.disk_mib));
                    let rules = Rules { budget, links: self.links.into() };
                    Ok(copy::pull(client, &vm, &style.absolute(&path), style, &to, rules).await?)
                }
                (Place::Stream, Place::Guest { vm, path }) => {
                    let path = client.vm(&vm).await?.path_style.absolute(&path);
                    Ok(copy::push_stream(client, &vm, &path, chown.as_ref(), tokio::io::stdin()).await?)
                }
                (Place::Guest { vm, path }, Place::Stream) => {
                    let budget = Budget::new(self.max_bytes.map_or(u64::MAX, ByteSize::bytes));
                    let path = client.vm(&vm).await?.path_style.absolute(&path);
                    let mut stdout = tokio::io::stdout();
                    Ok(copy::pull_stream(client, &vm, &path, budget, &mut stdout).await?)
                }
                _ => Err(CliError::invalid(
                    "copy_invalid",
                    "exactly one of SOURCE and TARGET must be in a VM: write it as VM:PATH, the path absolute",
                )),
            }
        };
        let moved = interrupts.unless(work).await?;
        if context.output.is_json() {
            context.output.json(&moved)?;
        }
        Ok(left_out::tell(&moved))
    }
}
