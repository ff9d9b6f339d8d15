//! `microvm image export`: an image as an archive for other programs.

use clap::Args;

use crate::commands::archive_file::Target;
use crate::context::Context;
use crate::error::CliError;
use crate::interrupts::Interrupts;
use crate::progress::while_waiting;

/// Write an image as an archive that docker, podman and skopeo read
#[derive(Debug, Args)]
#[command(after_help = "\
The archive is an OCI image layout and what `docker save` writes in one, with the configuration of the image. Equal images give equal
archives, and `microvm image import` makes the same image of it; holes of files are zeros in it. It has the name of the image as its tag, unless docker knows no
such names (capital letters, 64 hexadecimal digits) or a digest is given.

Examples:
  microvm image export my-image -o my-image.tar
  microvm image export my-image | docker load
  skopeo copy docker-archive:my-image.tar docker://registry.example.com/my-image")]
pub(crate) struct Export {
    /// Name or digest
    image: String,
    #[command(flatten)]
    target: Target,
}

impl Export {
    pub(crate) async fn run(self, context: &Context) -> Result<(), CliError> {
        self.target.check()?;
        let mut interrupts = Interrupts::new()?;
        let work = async {
            let asked = context.client.export_image(&self.image);
            let mut archive = while_waiting("reading the image", false, asked).await?;
            self.target.take(context, &mut archive).await
        };
        interrupts.unless(work).await
    }
}
