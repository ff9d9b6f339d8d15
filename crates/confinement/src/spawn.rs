//! The server's side of starting a caged process.

use std::io;
use std::os::fd::OwnedFd;
use std::process::Stdio;
use std::time::Duration;

use camino::Utf8Path;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::process::Command;

use crate::SUPERVISOR_COMMAND;
use crate::handshake::{GO, Report};
use crate::process::record::ProcessRecord;
use crate::process::stray::{MARK, mark};
use crate::spec::CageSpec;

/// Failure of starting a caged process.
#[derive(Debug, thiserror::Error)]
pub enum SpawnError {
    /// The supervisor could not be started or spoken to.
    #[error("the supervisor could not be started while {step}: {source}")]
    Supervisor {
        /// The step that failed.
        step: &'static str,
        /// Error of the system.
        #[source]
        source: io::Error,
    },
    /// The supervisor tells that a step failed.
    #[error("{step}: {detail}")]
    Cage {
        /// The step that failed.
        step: String,
        /// Error of the system.
        detail: String,
    },
    /// It took too long.
    #[error("the supervisor did not answer within {0:?}")]
    Timeout(Duration),
}

/// A caged process that runs.
#[derive(Debug)]
pub struct Spawned {
    /// Its processes.
    pub record: ProcessRecord,
}

/// Starts `spec.program` in its cage. `launcher` is this very program: it is run with [`SUPERVISOR_COMMAND`]. If the
/// future is dropped before it is done, nothing is left running, or what runs is named in `process.json`.
///
/// # Errors
/// See [`SpawnError`]; nothing runs then.
pub async fn spawn(launcher: &Utf8Path, spec: &CageSpec, deadline: Duration) -> Result<Spawned, SpawnError> {
    tokio::time::timeout(deadline, handshake(launcher, spec))
        .await
        .map_err(|_| SpawnError::Timeout(deadline))?
}

async fn handshake(launcher: &Utf8Path, spec: &CageSpec) -> Result<Spawned, SpawnError> {
    let at = |step: &'static str| move |source: io::Error| SpawnError::Supervisor { step, source };
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().map_err(at("making a socket"))?;
    ours.set_nonblocking(true).map_err(at("making a socket"))?;
    let mut child = Command::new(launcher)
        .arg(SUPERVISOR_COMMAND)
        // Seen in process listings; the supervisor reads nothing from it.
        .arg(&spec.id)
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        // Nothing of the server's environment, such as credentials, is for a process beside a VMM.
        .env_clear()
        .envs(mark(&spec.directory).map(|mark| (MARK, mark)))
        // The supervisor outlives the server, as its VMM does.
        .kill_on_drop(false)
        .spawn()
        .map_err(at("starting it"))?;
    // Reaped whenever it ends, which is when the VM does; the task costs a few hundred bytes.
    tokio::spawn(async move { child.wait().await });
    let (read, mut write) = UnixStream::from_std(ours).map_err(at("making a socket"))?.into_split();
    let mut lines = BufReader::new(read).lines();
    let mut text = serde_json::to_vec(spec).map_err(io::Error::from).map_err(at("describing the cage"))?;
    text.push(b'\n');
    write.write_all(&text).await.map_err(|source| match source.kind() {
        // Killed before it read a word; its own errors are told below.
        io::ErrorKind::BrokenPipe => at("describing the cage")(io::Error::other("it was ended at once")),
        _ => at("describing the cage")(source),
    })?;
    let mut next = async || -> Result<Report, SpawnError> {
        let line = lines.next_line().await.map_err(at("listening"))?;
        let line = line.ok_or_else(|| at("listening")(io::Error::other("it ended without a word")))?;
        serde_json::from_str(&line).map_err(io::Error::from).map_err(at("listening"))
    };
    let record = match next().await? {
        Report::Ready(record) => record,
        Report::Failed { step, detail } => return Err(SpawnError::Cage { step, detail }),
        Report::Started => return Err(at("listening")(io::Error::other("it skipped a step"))),
    };
    write.write_all(GO).await.map_err(at("letting it go"))?;
    match next().await? {
        Report::Started => Ok(Spawned { record }),
        Report::Failed { step, detail } => Err(SpawnError::Cage { step, detail }),
        Report::Ready(_) => Err(at("listening")(io::Error::other("it repeated a step"))),
    }
}
