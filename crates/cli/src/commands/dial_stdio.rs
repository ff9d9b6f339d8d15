//! `microvm dial-stdio`: the server's socket as standard input and output.

use tokio::io::AsyncWriteExt as _;

use crate::context::Context;
use crate::error::CliError;

/// Connects standard input and output with the server, until both directions have ended.
pub(crate) async fn run(context: &Context) -> Result<u8, CliError> {
    let (mut from_server, mut to_server) = context.client.dial().await?.into_split();
    let sending = async {
        let copied = tokio::io::copy(&mut tokio::io::stdin(), &mut to_server).await;
        copied.map_err(|error| CliError::file("reading", "standard input", &error))?;
        // The server may be gone, which the other direction shows.
        let _ = to_server.shutdown().await;
        // What is left of the answers still comes: only the other direction ends this.
        std::future::pending().await
    };
    let receiving = async {
        let mut stdout = tokio::io::stdout();
        let copied = tokio::io::copy(&mut from_server, &mut stdout).await;
        copied.map_err(|error| CliError::output(&error))?;
        stdout.flush().await.map_err(|error| CliError::output(&error))
    };
    tokio::select! {
        outcome = sending => outcome,
        outcome = receiving => outcome,
    }?;
    Ok(0)
}
