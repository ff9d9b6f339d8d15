//! A server in the background, when none listens.
//!
//! The new server has our pipe as its standard output and closes it when it is ready (after the word) or has failed
//! (after a problem in JSON); so readiness is an event, not a guess. Of several commands that start at once one starts
//! the server, the others wait for it behind a lock.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::Read as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::process::{Command, Stdio};

use camino::Utf8Path;
use microvm_api::Problem;
use microvm_client::{Client, ClientError};
use microvm_types::ErrorKind;

use crate::error::CliError;
use crate::notice::say;
use crate::settings::Settings;

/// Text that the server writes when it is ready.
pub(crate) const READY: &str = "ready\n";

/// A link in the place of a file of ours would let whoever made it choose what is written to.
const NO_LINK: i32 = rustix::fs::OFlags::NOFOLLOW.bits().cast_signed();

/// A client of a server that answers.
pub(crate) async fn connected(settings: &Settings) -> Result<Client, CliError> {
    let client = Client::new(microvm_server::socket_path(&settings.root));
    match client.live().await {
        Ok(_) => Ok(client),
        // It is there, and does not tell everybody how it is.
        Err(error) if error.kind() == ErrorKind::Forbidden && matches!(error, ClientError::Problem(_)) => {
            Ok(client)
        }
        Err(ClientError::NoServer { .. }) => {
            start(settings.clone(), client.clone()).await?;
            Ok(client)
        }
        Err(error) => Err(error.into()),
    }
}

async fn start(settings: Settings, client: Client) -> Result<(), CliError> {
    crate::root::claim(&settings.root).await?;
    let root = settings.root.clone();
    let lock = blocking(move || start_lock(&root)).await?;
    // Somebody else may have started it while we waited for the lock.
    if client.live().await.is_ok() {
        return Ok(());
    }
    say(&format!("starting a server on {} (log: {}/server.log)", settings.root, settings.root));
    let root = settings.root.clone();
    blocking(move || spawn(&root)).await?;
    // Held until it is ready: whoever waits for the lock finds it.
    drop(lock);
    Ok(client.live().await.map(drop)?)
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, CliError> + Send + 'static,
) -> Result<T, CliError> {
    let joined = tokio::task::spawn_blocking(work).await;
    joined.map_err(|error| CliError::new(ErrorKind::Internal, "server_start_failed", error.to_string()))?
}

fn start_lock(root: &Utf8Path) -> Result<File, CliError> {
    let folder = root.join("run");
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&folder)
        .map_err(|error| CliError::file("making", &folder, &error))?;
    let path = folder.join("start.lock");
    let mut options = OpenOptions::new();
    options.create(true).truncate(false).write(true).mode(0o600).custom_flags(NO_LINK);
    let file = options.open(&path);
    let file = file.map_err(|error| CliError::file("opening", &path, &error))?;
    file.lock().map_err(|error| CliError::file("locking", &path, &error))?;
    Ok(file)
}

/// Variables that a server started in the background takes over: its own, where programs and homes are, how the network
/// is reached, language and temporary files.
fn is_for_servers(name: &str) -> bool {
    const NAMES: [&str; 18] = [
        "PATH",
        "HOME",
        "USER",
        "LOGNAME",
        "LANG",
        "TZ",
        "TMPDIR",
        "XDG_DATA_HOME",
        "XDG_RUNTIME_DIR",
        "SSL_CERT_FILE",
        "SSL_CERT_DIR",
        // Of npm and pip, which fetch what recipes name.
        "NODE_EXTRA_CA_CERTS",
        "REQUESTS_CA_BUNDLE",
        "PIP_CERT",
        "RUST_BACKTRACE",
        "LC_ALL",
        "LC_CTYPE",
        "LC_MESSAGES",
    ];
    // Programs write these in small or in capital letters.
    const PROXIES: [&str; 4] = ["http_proxy", "https_proxy", "no_proxy", "all_proxy"];
    name.starts_with("MICROVM_")
        || NAMES.contains(&name)
        || PROXIES.iter().any(|proxy| name.eq_ignore_ascii_case(proxy))
}

/// Starts the server and waits until it is ready or has failed.
fn spawn(root: &Utf8Path) -> Result<(), CliError> {
    let failed = |detail: String| CliError::new(ErrorKind::Unavailable, "server_start_failed", detail);
    let log_path = root.join("server.log");
    let mut options = OpenOptions::new();
    options.create(true).append(true).mode(0o600).custom_flags(NO_LINK);
    let log = options.open(&log_path);
    let log = log.map_err(|error| CliError::file("opening", &log_path, &error))?;
    let program = std::env::current_exe().map_err(|error| {
        failed(format!("this program cannot find itself ({error}): start `microvm serve` by hand"))
    })?;
    let (mut reader, writer) =
        std::io::pipe().map_err(|error| failed(format!("no pipe could be made: {error}")))?;
    let mut command = Command::new(program);
    command.arg("--root").arg(root).args(["serve", "--background"]);
    // The server outlives this command and serves others: secrets and settings of one shell are not its business.
    command
        .env_clear()
        .envs(std::env::vars_os().filter(|(name, _)| name.to_str().is_some_and(is_for_servers)));
    // Not in the caller's directory: its file system could not be unmounted while the server lives.
    command.stdin(Stdio::null()).stdout(writer).stderr(log).current_dir("/");
    let mut child =
        command.spawn().map_err(|error| failed(format!("the server could not be started: {error}")))?;
    // Our copy of the writing end goes with the command; then the end of the stream is the server's word.
    drop(command);
    let mut word = String::new();
    let read = reader.read_to_string(&mut word);
    if read.is_ok() && word == READY {
        return Ok(());
    }
    let status = child.wait().map(|status| status.to_string()).unwrap_or_default();
    match serde_json::from_str::<Problem>(&word) {
        Ok(problem) => Err(problem.into()),
        Err(_) => Err(failed(format!(
            "the server ended ({status}) before it was ready: look at the end of {log_path}"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_gets_only_what_servers_need() {
        for name in ["PATH", "HOME", "MICROVM_LOG", "HTTPS_PROXY", "no_proxy", "TMPDIR"] {
            assert!(is_for_servers(name), "{name}");
        }
        for name in [
            "AWS_SECRET_ACCESS_KEY",
            "GITHUB_TOKEN",
            "SSH_AUTH_SOCK",
            "LD_PRELOAD",
            "LD_LIBRARY_PATH",
            "path",
        ] {
            assert!(!is_for_servers(name), "{name}");
        }
    }
}
