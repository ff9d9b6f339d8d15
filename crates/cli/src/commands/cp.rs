//! `microvm cp`: files and directories into and out of a VM.

use std::ffi::OsString;

use clap::Args;

use crate::context::Context;
use crate::error::CliError;
use crate::interrupts::Interrupts;
use crate::transfer::{self, Place};

/// Copy files and directories into and out of a VM
#[derive(Debug, Args)]
#[command(after_help = "\
One of SOURCE and TARGET is VM:PATH with an absolute path. A directory is copied with all that is in it. If TARGET is
a directory that exists, the copy goes into it. `-` is a tar stream on standard input or output.
A local file whose name has a colon is written ./NAME.

Examples:
  microvm cp ./src dev:/root/src
  microvm cp dev:/root/out ./out
  microvm cp dev:/etc - | tar t")]
pub(crate) struct Cp {
    /// What is copied
    source: OsString,
    /// Where it goes
    target: OsString,
}

impl Cp {
    pub(crate) async fn run(self, context: &Context) -> Result<u8, CliError> {
        let (source, target) = (Place::parse(&self.source), Place::parse(&self.target));
        let client = &context.client;
        let mut interrupts = Interrupts::new()?;
        let work = async {
            match (source, target) {
                (Place::Local(from), Place::Guest { vm, path }) => {
                    transfer::push(client, &vm, &from, &path).await
                }
                (Place::Guest { vm, path }, Place::Local(to)) => {
                    transfer::pull(client, &vm, &path, &to).await
                }
                (Place::Stream, Place::Guest { vm, path }) => transfer::push_stream(client, &vm, &path).await,
                (Place::Guest { vm, path }, Place::Stream) => transfer::pull_stream(client, &vm, &path).await,
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
        Ok(0)
    }
}
