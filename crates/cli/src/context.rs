//! Context shared by all commands that talk to the server.

use microvm_client::{Client, ClientError};
use microvm_types::ErrorKind;

use crate::error::CliError;
use crate::format::Format;
use crate::output::Output;
use crate::settings::Settings;
use crate::{autostart, remote};

/// The client, and where data goes.
#[derive(Debug)]
pub(crate) struct Context {
    pub(crate) output: Output,
    pub(crate) client: Client,
}

impl Context {
    /// Connects to the server that `MICROVM_HOST` names, or to that of the root, which is started if none listens.
    pub(crate) async fn open(settings: Settings, format: Format) -> Result<Self, CliError> {
        let client = match remote::client()? {
            Some(client) => {
                match client.ready().await {
                    // It is there, and does not tell everybody how it is.
                    Err(ClientError::Problem(problem)) if problem.kind == ErrorKind::Forbidden => {}
                    answer => drop(answer?),
                }
                client
            }
            None => autostart::connected(&settings).await?,
        };
        Ok(Self { output: Output::new(format), client })
    }
}
