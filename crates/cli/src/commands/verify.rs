//! `microvm verify`: checks stored images and kernels for damage.

use clap::Args;
use microvm_api::progress::ProgressLine;
use microvm_types::ErrorKind;

use crate::context::Context;
use crate::error::CliError;
use crate::interrupts::Interrupts;
use crate::progress;

/// Verify every stored image and kernel
#[derive(Debug, Args)]
#[command(after_help = "Exit code: 0 if nothing is damaged, 100 if something is.")]
pub(crate) struct Verify {}

impl Verify {
    pub(crate) async fn run(self, context: &Context) -> Result<u8, CliError> {
        let mut interrupts = Interrupts::new()?;
        let work = async { progress::follow(context.client.verify().await?).await };
        let ProgressLine::Damage { findings } = interrupts.unless(work).await? else {
            return Err(progress::unexpected());
        };
        let text = if findings.is_empty() { "nothing is damaged".to_owned() } else { findings.join("\n") };
        context.output.value(&serde_json::json!({ "findings": findings }), &text)?;
        Ok(if findings.is_empty() { 0 } else { ErrorKind::Internal.exit_code() })
    }
}
