//! Context shared by all commands that talk to the server.

use microvm_client::Client;

use crate::autostart;
use crate::error::CliError;
use crate::format::Format;
use crate::output::Output;
use crate::settings::Settings;

/// The client, and where data goes.
#[derive(Debug)]
pub(crate) struct Context {
    pub(crate) output: Output,
    pub(crate) client: Client,
}

impl Context {
    /// Connects, starting a server if none listens.
    pub(crate) async fn open(settings: Settings, format: Format) -> Result<Self, CliError> {
        let client = autostart::connected(&settings).await?;
        Ok(Self { output: Output::new(format), client })
    }
}
