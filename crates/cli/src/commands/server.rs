//! `microvm server`: the server in the background.

use std::time::Duration;

use clap::Subcommand;
use microvm_client::{Client, ClientError};
use microvm_types::ErrorKind;
use serde_json::json;

use crate::autostart;
use crate::error::CliError;
use crate::format::Format;
use crate::output::Output;
use crate::settings::Settings;

/// Longest time for a server to end: its engine lets go of every VM, which takes milliseconds.
const PATIENCE: Duration = Duration::from_secs(60);

/// Verbs for the server.
#[derive(Debug, Subcommand)]
pub(crate) enum Server {
    /// Show the server of this root, without starting one
    #[command(after_help = "Exit code: 0 if a server answers, 106 if none does.")]
    Status,
    /// End the server; VMs keep running
    #[command(after_help = "\
VMs keep running without a server; the next one takes them over. Limits, pools and hooks rest meanwhile. Any command
that needs a server starts one.")]
    Stop,
    /// End the server and start this program's
    #[command(after_help = "VMs keep running. Use it after an upgrade.")]
    Restart,
}

impl Server {
    pub(crate) async fn run(self, settings: &Settings, format: Format) -> Result<u8, CliError> {
        let output = Output::new(format);
        let client = Client::new(microvm_server::socket_path(&settings.root));
        match self {
            Self::Status => status(&client, output).await,
            Self::Stop => {
                let stopped = stop(&client, settings).await?;
                let text = if stopped { "stopped" } else { "no server was running" };
                output.value(&json!({ "stopped": stopped }), text)?;
                Ok(0)
            }
            Self::Restart => {
                stop(&client, settings).await?;
                autostart::connected(settings).await?;
                status(&client, output).await
            }
        }
    }
}

async fn status(client: &Client, output: Output) -> Result<u8, CliError> {
    match client.host_info().await {
        Ok(host) => {
            let (pid, version, up) = (host.server_pid, host.version, host.uptime_seconds);
            let value = json!({
                "running": true, "pid": pid, "version": version, "uptime_seconds": up, "socket": client.socket(),
            });
            let text = format!("running: version {version}, pid {pid}, up {up}s, on {}", client.socket());
            output.value(&value, &text)?;
            Ok(0)
        }
        Err(ClientError::NoServer { .. }) => {
            output.value(&json!({ "running": false, "socket": client.socket() }), "not running")?;
            Ok(ErrorKind::Unavailable.exit_code())
        }
        Err(error) => Err(error.into()),
    }
}

/// The error of a server from before servers could be asked to end.
async fn cannot_be_asked(client: &Client) -> CliError {
    let (server, signal) = match client.host_info().await {
        Ok(host) => (
            format!("it is version {}, pid {}", host.version, host.server_pid),
            format!("`kill -TERM {}`", host.server_pid),
        ),
        // Whoever started it knows its number.
        Err(error) => (format!("it does not tell its pid: {error}"), "SIGTERM".to_owned()),
    };
    let detail =
        format!("this server is too old to be asked to end ({server}): {signal} ends it; VMs keep running");
    CliError::new(ErrorKind::Unsupported, "server_too_old", detail)
}

/// Ends the server; false if there was none. Returns when it has let go of the root.
async fn stop(client: &Client, settings: &Settings) -> Result<bool, CliError> {
    match client.stop_server().await {
        // Two that stop it at once both succeed: one of them is cut off.
        Ok(()) | Err(ClientError::Lost { .. }) => {}
        Err(ClientError::NoServer { .. }) => return Ok(false),
        Err(ClientError::Problem(problem)) if problem.code == "route_not_found" => {
            return Err(cannot_be_asked(client).await);
        }
        Err(error) => return Err(error.into()),
    }
    let path = microvm_server::lock_path(&settings.root);
    let failed = |error: std::io::Error| CliError::file("locking", &path, &error);
    let lock = path.clone();
    // A server holds the lock until it has let go of every VM.
    let ended = tokio::task::spawn_blocking(move || std::fs::File::open(lock)?.lock());
    match tokio::time::timeout(PATIENCE, ended).await {
        Ok(Ok(locked)) => locked.map(|()| true).map_err(&failed),
        Ok(Err(error)) => Err(failed(error.into())),
        Err(_) => {
            let detail = format!("the server has not ended within {PATIENCE:?}: look at its log");
            Err(CliError::new(ErrorKind::Timeout, "server_stop_timeout", detail))
        }
    }
}
