//! A command in a guest with our standard streams.

use std::io::Read as _;
use std::time::Duration;

use bytes::Bytes;
use microvm_client::{Client, ExecEvent, ExecSession, ExecStream, ExecWriter};
use microvm_types::exec::ExitStatus;
use microvm_types::{ProcessId, VmRef};
use tokio::io::{AsyncWrite, AsyncWriteExt as _};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;

use crate::autostart::say;
use crate::error::CliError;
use crate::interrupts::Interrupts;
use crate::output::written;
use crate::terminal::{self, RawTerminal};

/// Bytes of standard input read at once.
const INPUT_PART: usize = 64 * 1024;

/// Most that is kept of each output when it is collected, in bytes.
const COLLECTED_MAX: usize = 10_000_000;

/// Time a command has to end after a signal of ours that it was sent, as `docker stop` gives.
const GRACE: Duration = Duration::from_secs(10);

/// What becomes of the output.
#[derive(Debug, Default)]
pub(crate) struct Collected {
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: Vec<u8>,
}

/// How the streams are connected.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wiring {
    /// Our standard input goes to the command.
    pub(crate) stdin: bool,
    /// Our terminal is its terminal.
    pub(crate) terminal: bool,
    /// Its output is collected instead of printed.
    pub(crate) collect: bool,
}

/// Connects our streams to the command's until it ends.
pub(crate) async fn stream(
    client: &Client,
    vm: &VmRef,
    session: ExecSession,
    wiring: Wiring,
    interrupts: &mut Interrupts,
) -> Result<(ExitStatus, Collected), CliError> {
    let raw = if wiring.terminal { Some(RawTerminal::enter()?) } else { None };
    let ExecSession { started, events, writer } = session;
    let mut collected = Collected::default();
    let status = tokio::select! {
        status = output(events, wiring.collect.then_some(&mut collected)) => status,
        never = input(writer, wiring) => match never? {},
        signal = pass_on(client, vm, &started.process, interrupts) => Err(CliError::Interrupted(signal)),
    };
    drop(raw);
    Ok((status?, collected))
}

/// Collects a command's output until it ends; it gets no input.
pub(crate) async fn collect(session: ExecSession) -> Result<(ExitStatus, Collected), CliError> {
    let ExecSession { events, writer: _open, .. } = session;
    let mut collected = Collected::default();
    let status = output(events, Some(&mut collected)).await?;
    Ok((status, collected))
}

async fn output(
    mut events: ExecStream,
    mut collected: Option<&mut Collected>,
) -> Result<ExitStatus, CliError> {
    let (mut stdout, mut stderr) = (tokio::io::stdout(), tokio::io::stderr());
    loop {
        match (events.next().await?, collected.as_mut()) {
            (ExecEvent::Exited(status), _) => return Ok(status),
            // Said only to whoever asked for less than all.
            (ExecEvent::UpToDate, _) => continue,
            (ExecEvent::Stdout(bytes), Some(all)) => keep(&mut all.stdout, &bytes),
            (ExecEvent::Stderr(bytes), Some(all)) => keep(&mut all.stderr, &bytes),
            (ExecEvent::Stdout(bytes), None) => print(&mut stdout, &bytes).await?,
            (ExecEvent::Stderr(bytes), None) => print(&mut stderr, &bytes).await?,
        }
    }
}

fn keep(all: &mut Vec<u8>, bytes: &[u8]) {
    let room = COLLECTED_MAX.saturating_sub(all.len());
    all.extend_from_slice(&bytes[..bytes.len().min(room)]);
}

async fn print(to: &mut (impl AsyncWrite + Unpin), bytes: &Bytes) -> Result<(), CliError> {
    to.write_all(bytes).await.map_err(|error| written(&error))?;
    to.flush().await.map_err(|error| written(&error))
}

/// Carries input for ever; the end of the command ends it. What cannot be sent because the connection broke shows in
/// the output.
async fn input(mut writer: ExecWriter, wiring: Wiring) -> Result<std::convert::Infallible, CliError> {
    let mut resized = if wiring.terminal { Some(window_changes()?) } else { None };
    let mut stdin = if wiring.stdin || wiring.terminal { Some(read_stdin()?) } else { None };
    loop {
        let sent = tokio::select! {
            data = next(&mut stdin) => match data {
                Some(Ok(data)) => writer.stdin(&data).await,
                Some(Err(error)) => return Err(CliError::file("reading", "standard input", &error)),
                None => {
                    stdin = None;
                    writer.close_stdin().await
                }
            },
            () = changed(&mut resized) => match terminal::size() {
                Some(size) => writer.resize(size).await,
                None => Ok(()),
            },
        };
        if sent.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

async fn next(stdin: &mut Option<mpsc::Receiver<std::io::Result<Bytes>>>) -> Option<std::io::Result<Bytes>> {
    match stdin {
        Some(stdin) => stdin.recv().await,
        None => std::future::pending().await,
    }
}

async fn changed(resized: &mut Option<Signal>) {
    match resized {
        Some(resized) => {
            resized.recv().await;
        }
        None => std::future::pending().await,
    }
}

fn window_changes() -> Result<Signal, CliError> {
    signal(SignalKind::window_change()).map_err(|error| CliError::file("listening to", "signals", &error))
}

/// Reads standard input on a thread of its own: a read from a terminal cannot be cancelled, and must not hold up the
/// end of this program.
fn read_stdin() -> Result<mpsc::Receiver<std::io::Result<Bytes>>, CliError> {
    let (sender, receiver) = mpsc::channel(4);
    let read = move || {
        let mut stdin = std::io::stdin().lock();
        let mut buffer = vec![0; INPUT_PART];
        loop {
            let part = match stdin.read(&mut buffer) {
                Ok(0) => return,
                Ok(length) => Ok(Bytes::copy_from_slice(&buffer[..length])),
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(error) => Err(error),
            };
            let failed = part.is_err();
            if sender.blocking_send(part).is_err() || failed {
                return;
            }
        }
    };
    let thread = std::thread::Builder::new().name("stdin".to_owned()).spawn(read);
    thread.map(|_| receiver).map_err(|error| CliError::file("starting", "a thread", &error))
}

/// Passes signals on to the command and gives it time to end by itself: after Ctrl-C for as long as it takes, after any
/// other [`GRACE`]. Another signal, or the end of that time, ends us. Signals go by requests of their own, so that they
/// do not wait behind input the command does not read.
async fn pass_on(client: &Client, vm: &VmRef, process: &ProcessId, interrupts: &mut Interrupts) -> u8 {
    let first = interrupts.next().await;
    let patience = async {
        let _ = client.signal(vm, process, first).await;
        if first == 2 {
            std::future::pending::<()>().await;
        }
        tokio::time::sleep(GRACE).await;
    };
    if first == 2 {
        say("interrupting the command; once more to abort");
    }
    tokio::select! {
        () = patience => first,
        signal = interrupts.next() => signal,
    }
}

/// Shows what is kept of a process's output, and what comes if that was asked for. What is not kept any more is said.
pub(crate) async fn show(session: ExecSession) -> Result<(), CliError> {
    // The writer stays: dropping it would close the connection.
    let ExecSession { started, mut events, writer: _open } = session;
    for (name, missing) in
        [("standard output", started.stdout_offset), ("standard error", started.stderr_offset)]
    {
        if missing > 0 {
            say(&format!("the first {missing} bytes of {name} are not kept any more"));
        }
    }
    let (mut stdout, mut stderr) = (tokio::io::stdout(), tokio::io::stderr());
    loop {
        match events.next().await? {
            ExecEvent::Stdout(bytes) => print(&mut stdout, &bytes).await?,
            ExecEvent::Stderr(bytes) => print(&mut stderr, &bytes).await?,
            ExecEvent::Exited(_) | ExecEvent::UpToDate => return Ok(()),
        }
    }
}
