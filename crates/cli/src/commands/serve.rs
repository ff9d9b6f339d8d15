//! `microvm serve`: the server.

use std::io::{IsTerminal as _, Write as _};
use std::sync::Mutex;

use clap::Args;
use microvm_client::sandbox::EndRequests as _;
use microvm_confinement::CappedLog;
use microvm_server::{App, AppSettings, BoundServer};
use microvm_types::ErrorKind;
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

use crate::autostart::READY;
use crate::bounds;
use crate::error::CliError;
use crate::interrupts::Interrupts;
use crate::settings::Settings;
use crate::wiring;

/// Bytes at which `server.log` becomes `server.log.old` and begins anew.
const LOG_CAP: u64 = 16 << 20;

/// Name of the variable that chooses what is logged.
const LOG_VARIABLE: &str = "MICROVM_LOG";

/// Run the server; other commands start it when they need it
#[derive(Debug, Args)]
#[command(after_help = "\
Listens on ROOT/run/api.sock for processes of the same user and of root. VMs keep running when the server ends; the
next server takes them over. MICROVM_LOG sets the log level (error, warn, info, debug, or per module),
MICROVM_TIME_ZONE the zone of all timestamps.

Example:
  microvm serve")]
pub(crate) struct Serve {
    /// Detach from the terminal, and report on standard output when ready
    #[arg(long, hide = true)]
    background: bool,
}

impl Serve {
    pub(crate) fn run(
        self,
        settings: &Settings,
        runtime: impl FnOnce() -> Result<Runtime, CliError>,
    ) -> Result<u8, CliError> {
        if self.background {
            crate::descriptors::close_inherited()
                .map_err(|error| CliError::file("closing", "what was inherited open", &error))?;
            // A session of its own: neither the caller's terminal nor its Ctrl-C reaches the server. It can only fail
            // for the leader of a process group, which then has its own already.
            let _ = rustix::process::setsid();
        }
        // After closing what was inherited, which would close the log as well.
        log(settings, self.background)?;
        crate::descriptors::raise_limit();
        crate::heap::limit_arenas();
        // Its threads come last: what is above must be done by a process of one thread.
        let outcome = runtime()?.block_on(self.serve(settings));
        if let (true, Err(CliError::Problem(problem))) = (self.background, &outcome) {
            tracing::error!(code = problem.code, detail = problem.detail, "the server could not serve");
            tell(&serde_json::to_string(problem).unwrap_or_default());
        }
        outcome.map(|()| 0)
    }

    async fn serve(&self, settings: &Settings) -> Result<(), CliError> {
        // Before the state is opened: a signal meanwhile waits, and ends the server in order.
        let mut interrupts = Interrupts::new()?;
        crate::root::claim(&settings.root).await?;
        // Before the engine: its lock keeps a second server from cleaning up what the first one uses.
        let bound = BoundServer::bind(&settings.root)
            .map_err(|error| CliError::new(error.kind(), error.code(), error.to_string()))?;
        let bounds = bounds::bounds().map_err(|error| {
            CliError::invalid("setting_invalid", format!("the server cannot begin: {error}"))
        })?;
        let engine = wiring::open_engine(settings).await.map_err(|error| {
            let kind = error
                .downcast_ref::<microvm_core::ServiceError>()
                .map_or(ErrorKind::Internal, |error| error.kind());
            let detail = format!("the server could not open its state: {error:#}");
            CliError::new(kind, "server_open_failed", detail)
        })?;
        let ending = CancellationToken::new();
        let app_settings = AppSettings { root: settings.root.clone(), zone: settings.zone.clone() };
        let app = App::new(std::sync::Arc::clone(&engine), app_settings, ending.clone()).with_bounds(bounds);
        tracing::info!(socket = %bound.path(), pid = std::process::id(), "serving");
        if self.background {
            tell(READY);
        } else {
            crate::notice::say(&format!("serving on {}", bound.path()));
        }
        let end = async {
            let signal = interrupts.next().await;
            tracing::info!(signal, "ending");
            ending.cancel();
            // A second request to end is taken at its word.
            interrupts.next().await
        };
        let served = tokio::select! {
            served = microvm_server::serve(bound, app) => served,
            signal = end => return Err(CliError::Interrupted(signal)),
            never = crate::heap::keep_small() => match never {},
        };
        engine.close().await;
        served.map_err(|error| {
            CliError::new(ErrorKind::Internal, "socket_failed", format!("the socket failed: {error}"))
        })
    }
}

/// Tells whoever started us in the background, then lets go of the pipe.
fn tell(text: &str) {
    let mut out = std::io::stdout();
    // Who started us may be gone; the server goes on.
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    if let Ok(null) = std::fs::OpenOptions::new().write(true).open("/dev/null") {
        // Replaced, not only closed: the next file that is opened would become standard output.
        let _ = rustix::stdio::dup2_stdout(&null);
    }
}

/// Logs to standard error: for people on a terminal, JSON otherwise. In the background: to `server.log`, which begins anew
/// when it is full; what libraries and panics write to standard error goes there as well.
fn log(settings: &Settings, background: bool) -> Result<(), CliError> {
    let filter = EnvFilter::try_from_env(LOG_VARIABLE).unwrap_or_else(|_| EnvFilter::new("info"));
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        // A log that cannot be written (its disk is full) is not worth a panic, which telling of it would be.
        .log_internal_errors(false)
        .with_timer(Timer(settings.zone.clone()));
    // Only a second subscriber could make it fail, and there is none.
    if background {
        let path = settings.root.join("server.log");
        let log = CappedLog::open(path.clone(), LOG_CAP);
        let log = log.map_err(|error| CliError::file("opening", &path, &error))?;
        let _ = builder.json().with_writer(Mutex::new(LogFile(log))).try_init();
    } else if std::io::stderr().is_terminal() {
        let _ = builder.with_writer(std::io::stderr).try_init();
    } else {
        let _ = builder.json().with_writer(std::io::stderr).try_init();
    }
    Ok(())
}

/// A log with a limit, as the subscriber writes to it: one call per line.
struct LogFile(CappedLog);

impl std::io::Write for LogFile {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.write(bytes).map(|()| bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Timestamps of logs are those of the interface: RFC 3339 with offset in the configured zone.
struct Timer(microvm_api::time::Zone);

impl tracing_subscriber::fmt::time::FormatTime for Timer {
    fn format_time(&self, writer: &mut tracing_subscriber::fmt::format::Writer<'_>) -> std::fmt::Result {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        let now = i64::try_from(now.as_millis()).unwrap_or(i64::MAX);
        writer.write_str(&self.0.format(now))
    }
}
