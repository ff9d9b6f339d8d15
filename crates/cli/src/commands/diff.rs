//! `microvm diff`: what a VM has changed of its image.

use clap::Args;
use microvm_types::VmRef;
use microvm_types::image::RootChange;

use crate::context::Context;
use crate::error::CliError;
use crate::interrupts::Interrupts;
use crate::left_out;
use crate::progress::while_waiting;

/// List the files that a running VM has added, changed and deleted
#[derive(Debug, Args)]
#[command(after_help = "\
One line for each path of the root that differs from the image, in order: A is added, C is changed (also a directory in which something
differs), D is deleted. The VM runs on; what writes to its disk waits while the changes are read. Memory, /tmp in memory, shared
folders, volumes and further disks are not listed. Sockets, and files called .wh.*, the marks of removed files in layers, are named on
standard error; the exit code is 1 then.

Example:
  microvm diff dev")]
pub(crate) struct Diff {
    /// Name or id of the VM
    vm: VmRef,
}

impl Diff {
    pub(crate) async fn run(self, context: &Context) -> Result<u8, CliError> {
        let mut interrupts = Interrupts::new()?;
        let work = async {
            let asked = context.client.changes(&self.vm);
            let found = while_waiting("reading the changes", false, asked).await?;
            if context.output.is_json() {
                context.output.json(&found)?;
                return Ok::<_, CliError>(left_out::tell_of_archive(found.left_out.as_ref()));
            }
            for changed in &found.changes {
                let letter = match changed.change {
                    RootChange::Added => 'A',
                    RootChange::Changed => 'C',
                    RootChange::Deleted => 'D',
                };
                context.output.line(&format!("{letter} {}", crate::visible::line(&changed.path)))?;
            }
            Ok(left_out::tell_of_archive(found.left_out.as_ref()))
        };
        interrupts.unless(work).await
    }
}
