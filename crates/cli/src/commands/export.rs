//! `microvm export`: the files of a VM as an archive.

use clap::Args;
use microvm_types::VmRef;

use crate::commands::archive_file::Target;
use crate::context::Context;
use crate::error::CliError;
use crate::interrupts::Interrupts;
use crate::left_out;
use crate::progress::while_waiting;

/// Write all files of a running VM as a tar
#[derive(Debug, Args)]
#[command(after_help = "\
All files of the image and of the disk with owners, modes, times, extended attributes, hard links and holes. The VM runs on; what writes to
its disk waits while the changes are read, so that all is of one moment. Memory, /tmp in memory, shared folders, volumes and further disks
are not in it. Sockets, which mean nothing without their programs, and files called .wh.*, the marks of removed files in layers, are left out and listed on
standard error; the exit code is 1 then. The configuration of the
image is not in a tar: `commit` and `image export` keep it.

Examples:
  microvm export dev -o dev.tar
  microvm export dev | tar -t")]
pub(crate) struct Export {
    /// Name or id of the VM
    vm: VmRef,
    #[command(flatten)]
    target: Target,
}

impl Export {
    pub(crate) async fn run(self, context: &Context) -> Result<u8, CliError> {
        self.target.check()?;
        let mut interrupts = Interrupts::new()?;
        let work = async {
            let asked = context.client.export_vm(&self.vm);
            let mut archive = while_waiting("reading the changes", false, asked).await?;
            self.target.take(context, &mut archive).await?;
            Ok::<_, CliError>(left_out::tell_of_archive(archive.left_out()))
        };
        interrupts.unless(work).await
    }
}
